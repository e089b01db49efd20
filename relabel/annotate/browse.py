"""`prefloop browse`: look through pairs, scores, labels and reports. There is nothing to send: every request is a GET."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...core.signals import StopSignal
from ...core.text import json_text
from ...store import PairStore, PrefloopError
from . import browse_queries as look
from .config import BrowseConfig
from .filters import Filters
from .pages import Pages
from .reports import report_file
from .security import Door, Guard, cookie_name
from .serve import address, listening, open_browser, serve, warn_of_network
from .thumbnails import HEX, Pictures


def browse(config: BrowseConfig, store: PairStore, say: Callable[[str], None]) -> None:
    """Serve the pages until a signal ends them.

    Args:
        say: told each link that works now.

    Raises:
        PrefloopError: where the port is taken.
    """
    with StopSignal().listening() as stop:
        bound = listening(config)
        try:
            root, links = address(config, bound), []

            def announce(token: str, _: str | None) -> None:
                links.append(f"{root}/enter?token={token}")
                say(links[-1])

            door: Door[str] = Door(announce)
            warn_of_network(config)
            door.invite()
            open_browser(links[0])
            serve(browse_app(config, store, door, bound.getsockname()[1]), bound, stop)
        finally:
            bound.close()


def browse_app(config: BrowseConfig, store: PairStore, door: Door[str], port: int) -> Guard:
    """The pages as an ASGI application."""
    pages = Pages("prefloop browse")
    pictures = Pictures(store)
    cookie = cookie_name("browse", port)

    def pairs(request: Request) -> Response:
        filters, wrong, status = Filters(), "", 200
        try:
            filters = Filters.of(request.query_params)
        except PrefloopError as error:
            wrong, status = str(error), 400
        found, total = ([], 0) if wrong else look.page_of_pairs(store, filters)
        values: dict[str, Any] = {
            "filters": filters,
            "asked": request.query_params if wrong else None,
            "wrong": wrong,
            "found": found,
            "total": total,
            "n_pages": look.n_pages(total),
            "choices": look.choices(store),
        }
        return pages.render(request, "pairs.html", values, status)

    def pair(request: Request) -> Response:
        found = look.seen(store, [_id(request)])
        if not found:
            raise HTTPException(404, "the store has no such pair")
        (one,) = found
        values = {
            "one": one,
            "tags": json.loads(one.tags),
            "history": look.history(store, one.pair),
            "made": look.made(store, one),
            "siblings": look.siblings(store, one),
        }
        return pages.render(request, "pair.html", values)

    def runs(request: Request) -> Response:
        found = look.runs(store)
        there = {run["run_id"] for run in found if run["report"] and look.report_folder(store, run["run_id"])}
        for run in found:
            for name in ("config", "summary"):
                run[name] = json_text(json.loads(run[name] or "{}"), indent=1)
        return pages.render(request, "runs.html", {"runs": found, "there": there})

    def report(request: Request) -> Response:
        folder = look.report_folder(store, _id(request))
        if folder is None:
            raise HTTPException(404, "the report of this run is not on this machine")
        return report_file(folder, request.path_params["path"])

    def image(request: Request) -> Response:
        return pictures.respond(request.path_params["name"])

    def thumbnail(request: Request) -> Response:
        return pictures.respond(request.path_params["name"], small=True)

    def enter(request: Request) -> Response:
        return pages.enter(request, door, cookie, str, named=False)

    routes = [
        Route("/", pairs, methods=["GET"]),
        Route("/pair/{name}", pair, methods=["GET"]),
        Route("/runs", runs, methods=["GET"]),
        Route("/runs/{name}/{path:path}", report, methods=["GET"]),
        Route("/image/{name}", image, methods=["GET"]),
        Route("/thumbnail/{name}", thumbnail, methods=["GET"]),
        Route("/enter", enter, methods=["GET", "POST"]),
        pages.static(),
    ]
    inner = Starlette(routes=routes, exception_handlers=pages.handlers())
    inner.router.redirect_slashes = False
    return Guard(inner, door, config, cookie, pages.stranger)


def _id(request: Request) -> UUID:
    name = request.path_params["name"]
    if not HEX.fullmatch(name):
        raise HTTPException(404)
    return UUID(name)
