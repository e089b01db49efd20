"""Ask an OpenAI-compatible chat endpoint: retries, a budget of requests, a rate, and what the answers cost."""

import json
import os
import random
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...core.errors import Interrupted, PrefloopError, UsageError
from ...core.http_headers import bearer, retry_after
from .request_limits import RequestLimits

API_KEY = "PREFLOOP_VLM_API_KEY"
RETRIES = 5
FIRST_DELAY = 0.5
"""Seconds before the first retry, at most; each further one may wait twice as long, up to MAX_DELAY."""
MAX_DELAY = 30.0
MAX_RETRY_AFTER = 300.0
"""Seconds that an endpoint may ask to wait."""
_RETRIED = {408, 409, 429}
_OF_ONE_REQUEST = {400, 413, 422}
"""An endpoint that answers other requests refuses this one with: it is too long, or a filter rejects it."""


class BudgetSpent(Interrupted):
    """--max-requests is used up."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.exit_code = 75  # EX_TEMPFAIL: the same command goes on


class RequestRefused(Exception):
    """The endpoint refuses this request; others may succeed."""


class Stopped(Exception):
    """Asking was ended from outside."""


@dataclass(frozen=True)
class Reply:
    text: str
    model: str
    """As the endpoint names it."""
    finish_reason: str | None
    logprobs: tuple[tuple[str, float], ...] | None
    """The most probable first tokens; None if the endpoint gives none."""
    usage: dict[str, float]
    """prompt_tokens, completion_tokens and cost, as far as the endpoint tells them."""


class ChatEndpoint:
    """One model behind one URL, used by many threads."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            UsageError: if the URL contains a key or a password.
        """
        if "@" in url.split("://", 1)[-1].split("/", 1)[0] or "?" in url:
            raise UsageError(f"an endpoint's URL is stored, so it cannot contain a key; give it in {API_KEY}")
        self.url = f"{url.rstrip('/')}/chat/completions"
        self._free_at = 0.0  # on time.monotonic's clock: when the next request may be sent
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.begin(RequestLimits())

    def __str__(self) -> str:
        return self.url

    def begin(self, limits: RequestLimits) -> None:
        """Count requests, and what they use, from here."""
        self.limits = limits
        self.sent = self.answered = self.refused = self._reserved = 0
        self.usage: dict[str, float] = {}

    def stop(self) -> None:
        """End the waits of all threads; what has been sent is still read."""
        self._stop.set()

    def restart(self) -> None:
        self._stop.clear()

    def reserve(self, n: int) -> None:
        """Take n requests from the budget, before the first of them is sent.

        Raises:
            BudgetSpent: if fewer are left.
        """
        with self._lock:
            budget = self.limits.max_requests
            if budget is not None and self._reserved + n > budget:
                raise BudgetSpent(
                    f"stopped at --max-requests {budget}: what {self.url} has answered is kept, and the same command continues"
                )
            self._reserved += n

    def ask(self, body: dict[str, Any]) -> Reply:
        """One answer; a request that was `reserve`d. Retries are taken from the budget too.

        Raises:
            BudgetSpent: if a retry is needed and no request is left.
            RequestRefused: if the endpoint refuses this request alone.
            Stopped: after `stop`.
            PrefloopError: if the endpoint cannot be used.
        """
        for attempt in range(RETRIES + 1):
            self._wait_for_turn()
            problem, wait = self._send(body)
            if isinstance(problem, Reply):
                return problem
            if attempt == RETRIES:
                raise PrefloopError(f"{problem}, {RETRIES + 1} times; is it overloaded? see --concurrency")
            if wait is not None and wait > MAX_RETRY_AFTER:
                raise PrefloopError(f"{problem} and asks to wait {wait:.0f} s; run the same command again then")
            self.reserve(1)
            # half of it is random, so that threads that failed together do not come back together
            delay = min(FIRST_DELAY * 2**attempt, MAX_DELAY) * (1 + random.random()) / 2
            if wait is not None:
                with self._lock:  # the other threads would be refused too
                    self._free_at = max(self._free_at, time.monotonic() + wait)
                delay = max(wait, delay)
            self._sleep(delay)
        raise AssertionError

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _wait_for_turn(self) -> None:
        rate = self.limits.requests_per_minute
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._free_at)
            if rate is not None:
                self._free_at = turn + 60 / rate
        self._sleep(max(turn - now, 0))

    @cached_property
    def _session(self) -> Any:
        import requests
        from requests.adapters import HTTPAdapter

        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=self.limits.concurrency))
        session.auth = bearer(os.environ.get(API_KEY))
        return session

    def _send(self, body: dict[str, Any]) -> "tuple[Reply | str, float | None]":
        """A reply, or a problem that may pass and the seconds to wait for that, if the endpoint says."""
        import requests

        with self._lock:
            self.sent += 1
            session = self._session
        timeout = self.limits.request_timeout
        try:
            answer = session.post(self.url, json=body, timeout=(min(timeout, 10), timeout), allow_redirects=False)
            text = answer.content.decode("utf-8", "replace")  # JSON is UTF-8, whatever the header says
        except requests.Timeout:
            return f"{self.url} does not answer within {timeout:g} s (--request-timeout)", None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise PrefloopError(f"{self.url} is not the URL of an endpoint") from error
        except requests.RequestException as error:
            return f"{self.url} does not answer: {type(error).__name__}; is it running?", None
        return self._read(answer.status_code, answer.headers, text)

    def _read(self, status: int, headers: Any, text: str) -> "tuple[Reply | str, float | None]":
        shown = repr(_without_key(text)[:200])
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if status == 200 and isinstance(content, dict) and isinstance(content.get("error"), dict):
            code = content["error"].get("code")  # as OpenRouter reports what its provider answered
            status = code if isinstance(code, int) and code >= 400 else 200
        if status in _RETRIED or status >= 500:
            return f"{self.url} answers {status}: {shown}", retry_after(headers.get("Retry-After"))
        if status in (401, 403):
            raise PrefloopError(f"{self.url} refuses the key; set {API_KEY}")
        if status in _OF_ONE_REQUEST:
            with self._lock:
                self.refused += 1
            raise RequestRefused(f"{self.url} answers {status}: {shown}")
        if 300 <= status < 400:
            raise PrefloopError(f"{self.url} redirects to {headers.get('Location')!r}; give that endpoint")
        if status != 200:
            raise PrefloopError(f"{self.url} answers {status}: {shown}")
        try:
            reply = _reply(content)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise PrefloopError(f"{self.url} does not answer with a chat completion: {shown}") from error
        with self._lock:
            self.answered += 1
            for name, amount in reply.usage.items():
                self.usage[name] = self.usage.get(name, 0) + amount
        return reply, None


def _reply(content: Any) -> Reply:
    choice = content["choices"][0]
    text = choice["message"]["content"]
    if isinstance(text, list):  # parts, as some servers give them
        text = "".join(part["text"] for part in text if part.get("type", "text") in ("text", "output_text"))
    if not isinstance(text, str | None):
        raise TypeError("the content is not text")
    usage = content.get("usage") or {}
    names = ("prompt_tokens", "completion_tokens", "cost")
    return Reply(
        text=_without_key(text or ""),
        model=_without_key(str(content.get("model") or "")),
        finish_reason=choice.get("finish_reason"),
        logprobs=_first_token(choice.get("logprobs")),
        usage={name: usage[name] for name in names if type(usage.get(name)) in (int, float)},
    )


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    """Of the answer's first token, the most probable ones."""
    tokens = (logprobs or {}).get("content")
    if not tokens or not tokens[0].get("top_logprobs"):
        return None
    return tuple((str(top["token"]), min(float(top["logprob"]), 0.0)) for top in tokens[0]["top_logprobs"])


def _without_key(text: str) -> str:
    """Text of an endpoint, which may repeat what it was sent."""
    key = os.environ.get(API_KEY)
    return text.replace(key, "…") if key else text
