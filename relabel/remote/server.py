"""Serve a scorer over HTTP to other trainers, with the protocol that `--scorer URL` speaks."""

import asyncio
import hmac
import os
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...core.errors import PrefloopError, UsageError
from ...core.signals import StopSignal
from ...core.text import visible
from ..annotate.config import LOOPBACK
from ..auto_batch import AutoBatch
from ..pairwise import PairwiseJudge
from ..scorers.calls import needs_tags, scores_of
from ..scorers.own_code import own_code, prints_to_stderr
from ..scorers.registry import Scorer, identity, load_scorers
from ..validation.check import example_scores
from .messages import MAX_BODY, TOKEN, RequestError, ScoreRequest, describe, parse_request
from .server_config import ScorerServerConfig

MAX_WAITING = 16
"""Requests that may wait; another is answered 429."""


class ScorerServer:
    """The requests to a scorer. One is scored at a time, while the images of the next one are decoded; the others wait in
    the order in which they came."""

    def __init__(self, scorer: Scorer, batch_size: int = 64, token: str | None = None) -> None:
        self.scorer, self.description, self.token = scorer, describe(scorer), token
        self.n_requests, self.n_images = 0, 0
        """Scored."""
        self._batch_size, self._auto_batch = batch_size, AutoBatch(scorer.name)
        self._waiting = 0
        self._in_memory, self._turn = asyncio.Semaphore(2), asyncio.Lock()

    async def __call__(self, scope, receive, send) -> None:  # an ASGI application
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            return
        request, headers = Request(scope, receive), {}
        try:
            status, content = 200, await self._answer(request)
        except RequestError as error:
            status, content = error.status, {"error": visible(str(error))}
            headers = {401: {"WWW-Authenticate": "Bearer"}, 405: {"Allow": "GET, POST"}, 429: {"Retry-After": "1"}}
            headers = headers.get(status, {})
        except PrefloopError as error:
            status, content = 400 if error.exit_code == 2 else 500, {"error": visible(str(error))}
            print(f"prefloop: {content['error']}", file=sys.stderr, flush=True)
        except ClientDisconnect:  # nobody waits for the answer
            return
        except asyncio.CancelledError:  # a batch took longer than the server waits for it after a signal
            status, content = 503, {"error": "the server is stopping"}
        await JSONResponse(content, status, headers)(scope, receive, send)

    async def _answer(self, request) -> dict:  # starlette's
        from starlette.concurrency import run_in_threadpool  # daemon threads: a long batch does not delay Ctrl-C

        if request.url.path != "/score":
            raise RequestError("only /score is here", 404)
        given = request.headers.get("authorization", "")
        if self.token and not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise RequestError("the bearer token is missing or wrong", 401)
        if request.method == "GET":
            return self.description
        if request.method != "POST":
            raise RequestError(f"{request.method} is not possible here; GET or POST", 405)
        # no other type: a page of another site can send JSON only if this server allows it, which it does not
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise RequestError("the content type must be application/json", 415)
        if self._waiting >= MAX_WAITING:
            raise RequestError(f"{self._waiting} requests are waiting", 429)
        self._waiting += 1
        try:
            body = await _body(request)
            async with self._in_memory:
                if await request.is_disconnected():
                    raise RequestError("nobody waits for the answer", 499)
                parsed = await run_in_threadpool(parse_request, body, with_tags=needs_tags(self.scorer))
                async with self._turn:
                    scores = await run_in_threadpool(self._score, parsed)
        finally:
            self._waiting -= 1
        self.n_requests, self.n_images = self.n_requests + 1, self.n_images + len(scores)
        values = [float(score) if np.isfinite(score) else None for score in scores]
        return {"scores": values, "revision": self.description["revision"]}

    def _score(self, request: ScoreRequest) -> NDArray[np.float32]:
        columns = request.prompts, request.images, request.tags
        with own_code(self.scorer):
            return np.concatenate(
                [
                    self._auto_batch(
                        lambda *batch: scores_of(self.scorer, *batch),
                        *(column[start : start + self._batch_size] for column in columns),
                    )
                    for start in range(0, len(request.images), self._batch_size)
                ]
            )


async def _body(request) -> bytes:  # starlette's
    """
    Raises:
        RequestError: if it is too large; nothing more is read then.
    """
    too_large = RequestError(f"the body has more than {MAX_BODY} bytes; send fewer images at once", 413)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


def serve_scorer(config: ScorerServerConfig, announce: Callable[[str, Scorer], None]) -> dict[str, int]:
    """Load a scorer, have it score two images, and serve it until a signal comes.

    Args:
        announce: called with the URL when requests are accepted.

    Returns:
        requests and images that were scored.

    Raises:
        UsageError: if it compares pairs, or cannot be loaded.
        PrefloopError: if the port is taken, or the scorer fails on the two images.
    """
    from ..annotate.serve import base_url, listen, serve

    token = os.environ.get(TOKEN)
    with StopSignal().listening() as stop:
        with stop.at_once():
            (scorer,) = load_scorers([config.scorer], config.checkpoints, config.device, config.dtype)
            if isinstance(scorer, PairwiseJudge):
                raise UsageError(f"{scorer.name} compares two images and cannot score one; name another scorer")
            if not needs_tags(scorer):
                example_scores(scorer)
        server = ScorerServer(scorer, config.batch_size, token)
        with listen(config) as bound:
            if config.host not in LOOPBACK and not token:
                print(f"prefloop: anyone on this network can use {identity(scorer)}; set {TOKEN}", file=sys.stderr)
            announce(f"{base_url(config, bound)}/score", scorer)
            with prints_to_stderr():
                serve(server, bound, stop)
    return {"requests": server.n_requests, "images": server.n_images}
