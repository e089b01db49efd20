"""`prefloop browse`: look through pairs, scores, labels and reports. Read-only: apart from signing in, every request is a GET."""

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
from ...core.stats import estimate_text
from ...core.text import json_text, short_names
from ...store import PairStore, PrefloopError
from ...store.evaluations import evaluations
from . import browse_queries as queries
from .config import BrowseConfig
from .filters import Filters
from .outcome import comparisons
from .output_folders import find_output
from .overview import Overview
from .pages import Pages
from .rater_text import alpha_line, between_columns, rater_columns, rater_notes
from .raters import raters
from .reports import report_file
from .security import InviteLinks, SecurityMiddleware, cookie_name
from .serve import base_url, listen, open_browser, serve, warn_if_exposed
from .thumbnails import HEX, ImageCache

MAX_EVALUATIONS, MAX_RUNS = 20, 100
"""The newest ones are shown."""
FIRST_EVALUATIONS, FIRST_RUNS = 4, 12
"""The newest ones are shown on the first page."""


def browse(config: BrowseConfig, store: PairStore, say: Callable[[str], None]) -> None:
    """Serve the pages until a signal ends them.

    Args:
        say: called with each new link.

    Raises:
        PrefloopError: if the port is taken.
    """
    with StopSignal().listening() as stop:
        bound = listen(config)
        try:
            root, links = base_url(config, bound), []

            def announce(token: str, _: str | None) -> None:
                links.append(f"{root}/enter?token={token}")
                say(links[-1])

            invites: InviteLinks[str] = InviteLinks(announce)
            warn_if_exposed(config)
            invites.create()
            open_browser(links[0])
            serve(browse_app(config, store, invites, bound.getsockname()[1]), bound, stop)
        finally:
            bound.close()


def browse_app(config: BrowseConfig, store: PairStore, invites: InviteLinks[str], port: int) -> SecurityMiddleware:
    """The pages as an ASGI application."""
    pages = Pages("prefloop browse")
    images, overview = ImageCache(store), Overview(store)
    cookie = cookie_name("browse", port)

    def first_page(request: Request) -> Response:
        listed, n_runs = overview.runs(FIRST_RUNS)
        values = {
            "store": str(store.path.resolve()),
            "counts": overview.counts(),
            "labelers": overview.labelers(),
            "evaluations": overview.evaluations(FIRST_EVALUATIONS),
            "runs": listed,
            "n_runs": n_runs,
        }
        return pages.render(request, "overview.html", values)

    def labeler_agreement(request: Request) -> Response:
        template = "agreement_part.html" if request.headers.get("hx-request") else "agreement.html"
        return pages.render(request, template, {"rows": overview.agreement()})

    def pairs(request: Request) -> Response:
        filters, error, status = Filters(), "", 200
        try:
            filters = Filters.from_query(request.query_params)
        except PrefloopError as invalid:
            error, status = str(invalid), 400
        page, total = ([], 0) if error else queries.page_of_pairs(store, filters)
        choices = queries.filter_values(store)
        chips = filters.chips(queries.names_of_ids(store, filters, choices))
        drops = queries.drops(store, filters) if chips and not total and not error else []
        values: dict[str, Any] = {
            "filters": filters,
            "requested": request.query_params if error else {},
            "error": error,
            "pairs": page,
            "total": total,
            "n_pages": queries.n_pages(total),
            "filter_values": choices,
            "chips": chips,
            "drops": list(zip(chips, drops, strict=True)) if drops else [],
            "titles": short_names(sorted({name for pair in page for of in pair.models for name in of})),
        }
        return pages.render(request, "pairs.html", values, status)

    def pair(request: Request) -> Response:
        found = queries.pair_details(store, [_id(request)])
        if not found:
            raise HTTPException(404, "the store has no such pair")
        details = found[0]
        values = {
            "pair": details,
            "tags": json.loads(details.tags),
            "labeler": request.query_params.get("labeler", ""),
            "labels": queries.label_history(store, details.pair_id),
            "generations": queries.generations(store, details),
            "siblings": queries.siblings(store, details),
            "titles": short_names(sorted({name for of in details.models for name in of})),
        }
        return pages.render(request, "pair.html", values)

    def runs(request: Request) -> Response:
        listed, n_runs = overview.runs(MAX_RUNS)
        for run in listed:
            for name in ("config", "summary"):
                run[name] = json_text(run[name], indent=1)
        return pages.render(request, "runs.html", {"runs": listed, "n_runs": n_runs})

    def report(request: Request) -> Response:
        run = _id(request)
        query = "select kind, status, config, summary from runs where run_id = ?"
        for kind, status, config, summary in store.rows(query, [run]):
            output = find_output(store, run, kind, status, json.loads(config or "{}"), json.loads(summary or "{}"))
            if output and output.folder:
                return report_file(output.folder, kind, request.path_params["path"])
            if output:
                raise HTTPException(404, output.problem)
        raise HTTPException(404, "this run has no report")

    def rater_statistics(request: Request) -> Response:
        result = overview.once("raters", lambda: raters(store))
        values = {
            "raters": rater_columns(result),
            "notes": rater_notes(result),
            "between": between_columns(result),
            "alpha": alpha_line(result),
        }
        return pages.render(request, "raters.html", values)

    def evaluation_outcomes(request: Request) -> Response:
        reported = {each["id"]: each for each in overview.evaluations(MAX_EVALUATIONS)}
        listed = []
        for evaluation, name in evaluations(store)[:MAX_EVALUATIONS]:
            compared = comparisons(store, evaluation)
            titles = short_names(list(dict.fromkeys(model for each in compared for model in (each.model, each.other))))
            each = {"id": evaluation.hex, "name": name, "comparisons": compared, "titles": titles}
            listed.append(each | {"reported": reported.get(evaluation.hex)})
        return pages.render(request, "evaluations.html", {"evaluations": listed, "estimate_text": estimate_text})

    def image(request: Request) -> Response:
        return images.respond(request.path_params["name"])

    def thumbnail(request: Request) -> Response:
        return images.respond(request.path_params["name"], small=True)

    def enter(request: Request) -> Response:
        return pages.enter(request, invites, cookie, str, named=False)

    routes = [
        Route("/", first_page, methods=["GET"]),
        Route("/agreement", labeler_agreement, methods=["GET"]),
        Route("/pairs", pairs, methods=["GET"]),
        Route("/pair/{name}", pair, methods=["GET"]),
        Route("/runs", runs, methods=["GET"]),
        Route("/runs/{name}/{path:path}", report, methods=["GET"]),
        Route("/evaluations", evaluation_outcomes, methods=["GET"]),
        Route("/raters", rater_statistics, methods=["GET"]),
        Route("/image/{name}", image, methods=["GET"]),
        Route("/thumbnail/{name}", thumbnail, methods=["GET"]),
        Route("/enter", enter, methods=["GET", "POST"]),
        pages.static(),
    ]
    inner = Starlette(routes=routes, exception_handlers=pages.exception_handlers())
    inner.router.redirect_slashes = False
    return SecurityMiddleware(inner, invites, config, cookie, pages.unauthorized)


def _id(request: Request) -> UUID:
    name = request.path_params["name"]
    if not HEX.fullmatch(name):
        raise HTTPException(404)
    return UUID(name)
