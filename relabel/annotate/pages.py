"""What both pages share: templates, static files, the door, and words for what is wrong."""

import mimetypes
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import duckdb
import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from ...core.text import visible
from ...store import PrefloopError, UsageError
from .security import Door, set_cookie

_STATIC = ("page.css", "page.js", "htmx.min.js", "icon.svg")
CANNOT = (PrefloopError, OSError, duckdb.Error)
"""What a full disk, a lost disk or another process bring about; it may pass."""
_USED = "This link was used, or is none. The terminal shows a fresh one."


def reason(error: Exception) -> str:
    """What is wrong, in a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


class Pages:
    """Renders the templates of this package; every value is shown as text."""

    def __init__(self, title: str) -> None:
        loader = jinja2.PackageLoader("prefloop.relabel.annotate", "templates")
        self._templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        self._templates.filters["visible"] = lambda text: visible(str(text))
        self._title = title

    def render(self, request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
        page = self._templates.get_template(template)
        return HTMLResponse(page.render(title=self._title, path=request.url.path, **values), status)

    def problem(self, request: Request, message: str, status: int) -> Response:
        """A page, or where a script asked the part of one, that says what is wrong."""
        template = "problem_part.html" if request.headers.get("hx-request") else "problem.html"
        return self.render(request, template, {"message": message}, status)

    def stranger(self, request: Request) -> Response:
        return self.problem(request, "Open the link that the command printed: it lets this browser in.", 401)

    def handlers(self) -> dict[Any, Any]:
        def http(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            return self.problem(request, f"{error.status_code}: {error.detail}", error.status_code)

        def ours(request: Request, error: Exception) -> Response:
            return self.problem(request, reason(error), 400 if isinstance(error, UsageError) else 503)

        return {HTTPException: http, **dict.fromkeys(CANNOT, ours)}

    def enter(self, request: Request, door: Door, cookie: str, begin: Callable[[str], Any], *, named: bool) -> Response:
        """The page behind a link: it asks for a name where the link has none. Only sending its form uses the link up.

        Args:
            begin: makes a session for a name, "" where nobody is asked for one.
        """
        form = request.state.form if request.method == "POST" else request.query_params
        token = form.get("token", "")
        try:
            name = door.invited(token)
        except KeyError:
            if request.state.session is not None:
                return RedirectResponse("/", 303)
            return self.problem(request, _USED, 403)
        if request.method != "POST":
            values = {"token": token, "name": name, "named": named, "typed": "", "wrong": ""}
            return self.render(request, "enter.html", values)
        typed = name or form.get("name", "")
        try:
            session = begin(typed)
        except CANNOT as error:
            values = {"token": token, "name": name, "named": named, "typed": typed, "wrong": reason(error)}
            part = "enter_part.html" if request.headers.get("hx-request") else "enter.html"
            return self.render(request, part, values, 400 if isinstance(error, UsageError) else 503)
        try:
            key = door.enter(token, session)
        except KeyError:
            return self.problem(request, _USED, 403)
        answer: Response = RedirectResponse("/", 303)
        if request.headers.get("hx-request"):
            answer = Response(status_code=200, headers={"hx-redirect": "/"})
        set_cookie(answer, cookie, key)
        return answer

    def static(self) -> Route:
        folder = files("prefloop.relabel.annotate") / "static"
        kept = {name: (folder / name).read_bytes() for name in _STATIC}

        def serve(request: Request) -> Response:
            name = request.path_params["name"]
            if name not in kept:
                raise HTTPException(404)
            media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            return Response(kept[name], media_type=media_type, headers={"cache-control": "no-cache"})

        return Route("/static/{name}", serve, methods=["GET"])
