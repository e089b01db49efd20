"""Requests for JSON to one URL: bounded in time and size, retried if the server is busy, never sent to another host."""

import json
import sys
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

from ...core.errors import PrefloopError
from ...core.http_headers import bearer, retry_after

CONNECT_TIMEOUT = 10.0  # seconds
TIMEOUT = 300.0  # seconds until an answer is complete
ATTEMPTS = 5
BACKOFF = 0.5  # seconds before the second attempt; doubled for each one after it
LONGEST_WAIT = 120.0  # seconds that a server may ask for
MAX_ANSWER = 2**20  # bytes
MAX_REDIRECTS = 3


def quote(value: Any) -> str:
    """A value from outside in a message: short, and without control characters."""
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


class _Busy(Exception):
    """The same request may succeed later."""

    def __init__(self, problem: str, wait: float | None = None, cure: str = "") -> None:
        super().__init__(problem)
        self.cure = cure
        self.wait = wait


class Connection:
    """
    Args:
        token: sent as a bearer token; never stored or printed.
    """

    def __init__(self, url: str, token: str | None) -> None:
        import requests

        self.url, self._auth = url, bearer(token)
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"  # a compressed answer has no known size

    def request(self, method: str, body: dict[str, Any] | None = None, *, attempts: int = ATTEMPTS) -> Any:
        """The answer's JSON.

        Raises:
            PrefloopError: if there is none; the message names the URL and the cause.
        """
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, attempts + 1):
            try:
                return self._parse(self._send(method, data))
            except _Busy as busy:
                if attempt == attempts:
                    raise PrefloopError(f"{self.url} {busy}, {attempts} times{busy.cure}") from busy
                wait = BACKOFF * 2 ** (attempt - 1) if busy.wait is None else busy.wait
                if wait > LONGEST_WAIT:
                    raise PrefloopError(
                        f"{self.url} {busy} and asks to wait {wait:.0f} s; run the same command later"
                    ) from busy
                if wait > 5:
                    print(f"{self.url} {busy}; trying again in {wait:.0f} s", file=sys.stderr)
                time.sleep(wait)
        raise AssertionError  # the last attempt returns or raises

    def _send(self, method: str, data: bytes | None) -> bytes:
        """The body of an answer with status 200."""
        import requests

        url, deadline = self.url, time.monotonic() + TIMEOUT
        for _ in range(MAX_REDIRECTS + 1):
            try:
                with self._session.request(
                    method,
                    url,
                    data=data,
                    headers=None if data is None else {"Content-Type": "application/json"},
                    auth=self._auth,
                    stream=True,
                    allow_redirects=False,
                    timeout=(CONNECT_TIMEOUT, TIMEOUT),
                ) as answer:
                    content = self._read(answer, deadline)
            except requests.exceptions.SSLError as error:
                raise PrefloopError(f"{self.url} has no certificate that can be verified") from error
            except requests.ReadTimeout as error:
                raise self._too_slow() from error
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                if "Read timed out" in str(error):
                    raise self._too_slow() from error
                cure = "; start the server, or give another address"
                raise _Busy(f"does not answer: {_reason(error)}", cure=cure) from error
            except (requests.RequestException, UnicodeError) as error:
                raise PrefloopError(f"{self.url} cannot be asked: {type(error).__name__}") from error
            if answer.status_code in (307, 308) or (method == "GET" and answer.status_code in (301, 302, 303)):
                url = self._redirected(url, answer.headers.get("Location"))
                continue
            self._refuse(answer.status_code, answer.headers.get("Retry-After"), content)
            return content
        raise PrefloopError(f"{self.url} redirects more than {MAX_REDIRECTS} times")

    def _read(self, answer: Any, deadline: float) -> bytes:
        content = bytearray()
        for chunk in answer.iter_content(2**16):
            content += chunk
            if len(content) > MAX_ANSWER:
                raise PrefloopError(f"{self.url} answers with more than {MAX_ANSWER} bytes")
            if time.monotonic() > deadline:
                raise self._too_slow()
        return bytes(content)

    def _too_slow(self) -> PrefloopError:
        return PrefloopError(f"{self.url} has not answered within {TIMEOUT:.0f} s; use a smaller --batch-size")

    def _redirected(self, url: str, location: str | None) -> str:
        target = urljoin(url, location or "")
        here, there = urlsplit(url), urlsplit(target)
        if not location or (here.scheme, here.netloc) != (there.scheme, there.netloc):
            raise PrefloopError(
                f"{self.url} redirects to {quote(location)}, another server; name that URL if you trust it"
            )
        return target

    def _refuse(self, status: int, wait: str | None, content: bytes) -> None:
        if status == 200:
            return
        if status in (401, 403):
            raise PrefloopError(f"{self.url} refuses the token; set PREFLOOP_SCORER_TOKEN to that of the server")
        problem = f"answers {status}: {_error_text(content)}"
        if status == 429 or status >= 500:
            raise _Busy(problem, retry_after(wait))
        raise PrefloopError(f"{self.url} {problem}")

    def _parse(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            start = content.lstrip()[:100].lower()
            what = "an HTML page" if start.startswith((b"<!doctype html", b"<html")) else quote(content[:80])
            raise PrefloopError(f"{self.url} does not answer with JSON, but with {what}") from error


def _reason(error: Exception) -> str:
    """The innermost cause in words; the messages of requests repeat the request."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return getattr(cause, "strerror", None) or str(cause).split("\n")[0][:100] or type(cause).__name__


def _error_text(content: bytes) -> str:
    try:
        return quote(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return quote(content.decode(errors="replace")[:100])
