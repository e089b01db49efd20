"""Who may ask what: every request passes here before the page sees it, every answer on its way out.

The server listens on this machine alone unless told otherwise. A link that works once gives a browser its cookie.
Names that other sites could point here (DNS rebinding) are refused, and so is what other sites make a browser send.
"""

import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import LOOPBACK, ServeConfig

MOST_BODY = 16_384
"""Bytes that a browser may send at once."""
_FORM = "application/x-www-form-urlencoded"
_PUBLIC = re.compile(r"/enter|/static/[a-z.]+")
_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}|\[[0-9A-Fa-f:]+\]")
_CSP = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# The cookie is not sent where another site's link leads here; asked again by this page itself, it is.
_AGAIN = '<!doctype html><title>prefloop</title><meta http-equiv="refresh" content="0"><p><a href="">Go on</a>'
S = TypeVar("S")


class Door(Generic[S]):
    """Links that work once, and the sessions they began."""

    def __init__(self, announce: Callable[[str, str | None], None]) -> None:
        self._announce = announce
        self._tokens: dict[str, str | None] = {}
        self._sessions: dict[str, S] = {}

    def invite(self, name: str | None = None) -> str:
        """A new link's token, announced. Whoever uses it is `name`, or says who they are."""
        token = secrets.token_urlsafe(32)
        self._tokens[token] = name
        self._announce(token, name)
        return token

    def invited(self, token: str) -> str | None:
        """Name that goes with an unused token.

        Raises:
            KeyError: where there is no such token, or it was used.
        """
        found = [known for known in list(self._tokens) if hmac.compare_digest(known.encode(), token.encode())]
        if not found:
            raise KeyError(token)
        return self._tokens[found[0]]

    def enter(self, token: str, session: S) -> str:
        """Use a token up; the cookie's value. A fresh link takes its place, for another browser.

        Raises:
            KeyError: where another browser was quicker.
        """
        name = self._tokens.pop(token)
        key = secrets.token_urlsafe(32)
        self._sessions[key] = session
        self.invite(name)
        return key

    def session(self, key: str | None) -> S | None:
        return None if key is None else self._sessions.get(key)


class Guard:
    """The outermost layer of a page."""

    def __init__(self, app: ASGIApp, door: Door[Any], config: ServeConfig, cookie: str, refuse: Callable) -> None:
        self.app, self.door, self.cookie, self.refuse = app, door, cookie, refuse
        self.hosts = _hosts(config)
        # an address is no name that could be pointed elsewhere; it is asked for where all interfaces are listened on
        self.any_address = config.host in ("0.0.0.0", "::")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        answer = await self._refused(request)
        if answer is None:
            # whatever went out of the body is in the form already
            await self.app(scope, receive, guarded)
        else:
            await answer(scope, receive, guarded)

    async def _refused(self, request: Request) -> Response | None:
        headers = request.headers
        if len(headers.getlist("host")) != 1 or not self._is_own(headers["host"]):
            return PlainTextResponse("this name is not one of this server; --allow-host makes it one", 421)
        if request.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("only GET and POST are answered", 405, {"allow": "GET, HEAD, POST"})
        request.state.session = self.door.session(request.cookies.get(self.cookie))
        if request.method == "POST":
            if not from_this_page(headers):
                return PlainTextResponse("what another site makes a browser send is not taken", 403)
            if headers.get("content-type", "").split(";")[0].strip().lower() != _FORM:
                return PlainTextResponse(f"a form is sent as {_FORM}", 415)
            body = await _body(request)
            if body is None:
                return PlainTextResponse(f"more than {MOST_BODY} bytes", 413)
            try:
                request.state.form = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
            except ValueError:  # no UTF-8, or too many fields
                return PlainTextResponse("that is no form of this page", 400)
        if request.state.session is None and not _PUBLIC.fullmatch(request.url.path):
            if request.method == "GET" and headers.get("sec-fetch-site") == "cross-site":
                return Response(_AGAIN, 200, media_type="text/html")
            return self.refuse(request)
        return None

    def _is_own(self, host: str) -> bool:
        found = re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?", host)
        if not found:
            return False
        name = found[1].lower()
        return name in self.hosts or (self.any_address and _ADDRESS.fullmatch(name) is not None)


def _hosts(config: ServeConfig) -> set[str]:
    names = {*LOOPBACK, config.host, *config.allow_hosts}
    return {f"[{name}]" if ":" in name else name.lower() for name in names}


def from_this_page(headers: Headers) -> bool:
    """Whether the browser says that a page of this very server makes it send this.

    Under no-referrer a form that is sent without a script has the origin null; Sec-Fetch-Site tells it from others'.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is None or origin == "null":
        return site == "same-origin"
    return origin in (f"http://{headers['host']}", f"https://{headers['host']}")


async def _body(request: Request) -> bytes | None:
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MOST_BODY:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            return None
    return bytes(body)


def cookie_name(kind: str, port: int) -> str:
    """Cookies know no ports: servers side by side need names of their own."""
    return f"prefloop-{kind}-{port}"


def set_cookie(answer: Response, name: str, value: str) -> None:
    answer.set_cookie(name, value, httponly=True, samesite="strict", path="/")


def only(values: Iterable[str], pattern: str) -> bool:
    """Whether each text, wholly, is of the pattern."""
    return all(re.fullmatch(pattern, value, re.ASCII) for value in values)
