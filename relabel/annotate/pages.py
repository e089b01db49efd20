"""What both pages share: templates, static files, the sign-in page, and error pages."""

import mimetypes
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import duckdb
import jinja2
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from ...core.text import visible, visible_lines
from ...store import PrefloopError, UsageError
from .security import InviteLinks, set_cookie

_STATIC = ("page.css", "page.js", "label.css", "label.js", "zoom.js", "htmx.min.js", "icon.svg")
STORE_ERRORS = (PrefloopError, OSError, duckdb.Error)
"""Caused by a full disk, a missing disk or another process; the next request may succeed."""
_INVALID_LINK = "This link is invalid or already used. The terminal shows a new one."


def sentence(error: Exception) -> str:
    """The error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def with_code(text: str) -> Markup:
    """A message as HTML, with what stands between backticks, such as a command, as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))


class Pages:
    """Renders the templates of this package; every value is shown as text."""

    def __init__(self, title: str) -> None:
        loader = jinja2.PackageLoader("prefloop.relabel.annotate", "templates")
        self._templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        self._templates.filters |= {
            "visible": lambda text: visible(str(text)),
            "visible_lines": visible_lines,
            "with_code": with_code,
        }
        self._title = title

    def render(self, request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
        page = self._templates.get_template(template)
        return HTMLResponse(page.render(title=self._title, path=request.url.path, **values), status)

    def problem(self, request: Request, message: str, status: int) -> Response:
        """An error page, or only its fragment if a script asked."""
        template = "problem_part.html" if request.headers.get("hx-request") else "problem.html"
        return self.render(request, template, {"message": message, "status": status}, status)

    def unauthorized(self, request: Request) -> Response:
        return self.problem(request, "Open the link that the command printed to let this browser in.", 401)

    def exception_handlers(self) -> dict[Any, Any]:
        def http(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            return self.problem(request, f"{error.status_code}: {error.detail}", error.status_code)

        def store(request: Request, error: Exception) -> Response:
            return self.problem(request, sentence(error), 400 if isinstance(error, UsageError) else 503)

        return {HTTPException: http, **dict.fromkeys(STORE_ERRORS, store)}

    def enter(
        self,
        request: Request,
        invites: InviteLinks,
        cookie: str,
        open_session: Callable[[str], Any],
        *,
        named: bool,
        question: str = "",
    ) -> Response:
        """The page behind a link. Only sending its form uses the link up.

        Args:
            open_session: makes a session for a name, "" if nobody is asked for one.
            named: a session needs a name; the page asks for it if the link has none.
            question: what people are asked.
        """
        form = request.state.form if request.method == "POST" else request.query_params
        token = form.get("token", "")
        try:
            name = invites.name_of(token)
        except KeyError:
            if request.state.session is not None:
                return RedirectResponse("/", 303)
            return self.problem(request, _INVALID_LINK, 403)
        shown = {"token": token, "name": name, "named": named, "question": question}
        if request.method != "POST":
            values = shown | {"typed": "", "error": ""}
            return self.render(request, "enter.html", values)
        typed = name or form.get("name", "")
        try:
            session = open_session(typed)
        except STORE_ERRORS as error:
            values = shown | {"typed": typed, "error": sentence(error)}
            template = "enter_part.html" if request.headers.get("hx-request") else "enter.html"
            return self.render(request, template, values, 400 if isinstance(error, UsageError) else 503)
        try:
            key = invites.redeem(token, session)
        except KeyError:
            return self.problem(request, _INVALID_LINK, 403)
        response: Response = RedirectResponse("/", 303)
        if request.headers.get("hx-request"):
            response = Response(status_code=200, headers={"hx-redirect": "/"})
        set_cookie(response, cookie, key)
        return response

    def static(self) -> Route:
        folder = files("prefloop.relabel.annotate") / "static"
        contents = {name: (folder / name).read_bytes() for name in _STATIC}

        def serve(request: Request) -> Response:
            name = request.path_params["name"]
            if name not in contents:
                raise HTTPException(404)
            media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            return Response(contents[name], media_type=media_type, headers={"cache-control": "no-cache"})

        return Route("/static/{name}", serve, methods=["GET"])
