"""Access control: checks every request before the page sees it, and adds headers to every response.

The server listens only on this machine by default. A link that works once gives a browser its cookie.
Host names that other sites could point here (DNS rebinding) are refused, and so are requests that other sites make a browser send.
"""

import hmac
import re
import secrets
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import EVERYWHERE, LOOPBACK, ServeConfig

MAX_BODY = 16_384
"""Maximum size of a request's body in bytes."""
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
# Browsers do not send the cookie when another site's link leads here. They do when this page reloads itself.
_RELOAD = '<!doctype html><title>prefloop</title><meta http-equiv="refresh" content="0"><p><a href="">Continue</a>'
S = TypeVar("S")


class InviteLinks(Generic[S]):
    """Links that work once, and the sessions that began with them."""

    def __init__(self, announce: Callable[[str, str | None], None]) -> None:
        self._announce = announce
        self._tokens: dict[str, str | None] = {}
        self._sessions: dict[str, S] = {}
        self._of_devices: dict[str, str] = {}
        """The unused link for another device of each name."""

    def create(self, name: str | None = None) -> str:
        """Create and announce a link; returns its token. Whoever uses it is `name`, or is asked for a name."""
        token = secrets.token_urlsafe(32)
        self._tokens[token] = name
        self._announce(token, name)
        return token

    def for_device(self, name: str) -> str:
        """The token of a link for another device of somebody who is in; the same one until it is used. It is not announced."""
        token = self._of_devices.get(name)
        if token not in self._tokens:
            token = self._of_devices[name] = secrets.token_urlsafe(32)
            self._tokens[token] = name
        return token

    def name_of(self, token: str) -> str | None:
        """The name that belongs to an unused token.

        Raises:
            KeyError: if the token is invalid or already used.
        """
        matches = [known for known in list(self._tokens) if hmac.compare_digest(known.encode(), token.encode())]
        if not matches:
            raise KeyError(token)
        return self._tokens[matches[0]]

    def redeem(self, token: str, session: S) -> str:
        """Use a token up; returns the cookie's value. A new link replaces one that was announced, for another browser.

        Raises:
            KeyError: if another browser was quicker.
        """
        name = self._tokens.pop(token)
        key = secrets.token_urlsafe(32)
        self._sessions[key] = session
        if name is None or self._of_devices.get(name) != token:
            self.create(name)
        return key

    def session(self, key: str | None) -> S | None:
        return None if key is None else self._sessions.get(key)


class SecurityMiddleware:
    """The outermost layer of a page."""

    def __init__(
        self,
        app: ASGIApp,
        invites: InviteLinks[Any],
        config: ServeConfig,
        cookie: str,
        unauthorized: Callable[[Request], Response],
    ) -> None:
        self.app, self.invites, self.cookie, self.unauthorized = app, invites, cookie, unauthorized
        self.hosts = _hosts(config)
        # DNS rebinding needs a name; addresses are safe, and browsers send them when all interfaces are listened on
        self.any_address = config.host in EVERYWHERE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        refusal = await self._check(request)
        if refusal is None:
            # the body has been read: it is in request.state.form
            await self.app(scope, receive, send_with_headers)
        else:
            await refusal(scope, receive, send_with_headers)

    async def _check(self, request: Request) -> Response | None:
        headers = request.headers
        if len(headers.getlist("host")) != 1 or not self._is_own(headers["host"]):
            return PlainTextResponse("unknown host name; add it with --allow-host", 421)
        if request.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("only GET and POST are supported", 405, {"allow": "GET, HEAD, POST"})
        request.state.session = self.invites.session(request.cookies.get(self.cookie))
        if request.method == "POST":
            if not is_same_origin(headers):
                return PlainTextResponse("requests from other sites are refused", 403)
            if headers.get("content-type", "").split(";")[0].strip().lower() != _FORM:
                return PlainTextResponse(f"the content type must be {_FORM}", 415)
            body = await _body(request)
            if body is None:
                return PlainTextResponse(f"the body must be at most {MAX_BODY} bytes", 413)
            try:
                request.state.form = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
            except ValueError:  # not UTF-8, or too many fields
                return PlainTextResponse("this is not a form of this page", 400)
        if request.state.session is None and not _PUBLIC.fullmatch(request.url.path):
            if request.method == "GET" and headers.get("sec-fetch-site") == "cross-site":
                return Response(_RELOAD, 200, media_type="text/html")
            return self.unauthorized(request)
        return None

    def _is_own(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?", host)
        if not match:
            return False
        name = match[1].lower()
        return name in self.hosts or (self.any_address and _ADDRESS.fullmatch(name) is not None)


def _hosts(config: ServeConfig) -> set[str]:
    names = {*LOOPBACK, config.host, *config.allow_hosts}
    return {f"[{name}]" if ":" in name else name.lower() for name in names}


def is_same_origin(headers: Headers) -> bool:
    """Whether the browser says that a page of this server sent the request.

    Under no-referrer, a form sent without a script has the origin null; then only Sec-Fetch-Site tells.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is None or origin == "null":
        return site == "same-origin"
    return origin in (f"http://{headers['host']}", f"https://{headers['host']}")


async def _body(request: Request) -> bytes | None:
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def cookie_name(kind: str, port: int) -> str:
    """Cookies ignore ports, so servers on one machine need different names."""
    return f"prefloop-{kind}-{port}"


def set_cookie(response: Response, name: str, value: str) -> None:
    response.set_cookie(name, value, httponly=True, samesite="strict", path="/")
