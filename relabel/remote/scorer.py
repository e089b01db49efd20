"""A scorer behind a URL: another environment, another machine, another language. Plain JSON in both directions."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ...core.errors import IntegrityError, PrefloopError, UsageError
from ..scorers.calls import Tags
from .connection import Connection, quote
from .messages import TOKEN, encode_image

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES_AT_ONCE = 64
BYTES_AT_ONCE = 32 * 2**20  # of base64


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def scorer_at(url: str) -> "type[HTTPScorer]":
    """The class of the scorer behind a URL; its objects ask the URL what it is.

    Raises:
        UsageError: if it is not the URL of a server, or contains a password.
    """
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, named = None, False
    if parts is not None and (parts.username is not None or parts.password is not None):
        raise UsageError(
            f"the URL of a scorer at {parts.hostname} contains a user name or a password, and URLs are stored; set {TOKEN} "
            "to the token instead"
        )
    if parts is None or not named or parts.fragment or any(ord(letter) <= 32 for letter in url):
        raise UsageError(f"{url!r} is not the URL of a scorer, such as http://127.0.0.1:8600/score")
    return type("HTTPScorer", (HTTPScorer,), {"url": url, "__module__": __name__})


class HTTPScorer:
    """docs/choice-models.md describes the protocol. The bearer token is read from PREFLOOP_SCORER_TOKEN."""

    url: str

    def __init__(self) -> None:
        self._connection = Connection(self.url, os.environ.get(TOKEN))
        said = self._describe(attempts=3)
        self.name, self.revision = str(said["name"]), str(said["revision"])
        self.needs_prompt: bool = said["needs_prompt"]
        self.needs_tags: bool = said["needs_tags"]
        self.eval_only: bool = said["eval_only"]
        self.temperature = float(said["temperature"])
        self.sources = {"url": self.url}

    def score(
        self, prompts: Sequence[str], images: "Sequence[Image]", tags: Sequence[Tags | None] | None = None
    ) -> NDArray[np.float32]:
        """float32 (B,); nan for null.

        Raises:
            PrefloopError: if the server does not answer with a number or null for each image.
            IntegrityError: if it has become another scorer.
        """
        with ThreadPoolExecutor() as pool:
            encoded = list(pool.map(encode_image, images))
        scores: list[float] = []
        for part in _parts(encoded):
            body: dict[str, Any] = {"prompts": list(prompts[part]), "images": encoded[part]}
            if tags is not None:
                body["tags"] = list(tags[part])
            answer = self._connection.request("POST", body)
            scores += self._parse_scores(answer, len(body["images"]))
            self._refuse_another(answer)
        with np.errstate(over="ignore"):  # inf, which is counted as not finite
            return np.array(scores, np.float32)

    def _describe(self, attempts: int) -> dict[str, Any]:
        said = self._connection.request("GET", attempts=attempts)
        if not isinstance(said, dict):
            raise PrefloopError(f"{self.url} does not describe a scorer: {quote(said)}")
        said = {"temperature": 1.0, "needs_tags": False, "eval_only": False} | said
        for key, kind in _KINDS.items():
            value = said.get(key)
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                what = f"{key} {quote(value)}" if key in said else f"no {key}"
                raise PrefloopError(f"{self.url} does not describe a scorer: it has {what}")
        if not math.isfinite(said["temperature"]) or said["temperature"] <= 0:
            raise PrefloopError(f"{self.url} does not describe a scorer: it has temperature {said['temperature']}")
        return said

    def _parse_scores(self, answer: Any, n: int) -> list[float]:
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise PrefloopError(f"{self.url} answers without a list of scores: {quote(answer)}")
        if len(scores) != n:
            raise PrefloopError(f"{self.url} gives {len(scores)} scores for {n} images; there must be one for each")
        return [self._number(score) for score in scores]

    def _number(self, score: Any) -> float:
        if score is None:
            return math.nan
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise PrefloopError(f"{self.url} gives the score {quote(score)}, which is not a number")
        try:
            return float(score)
        except OverflowError:
            return math.inf

    def _refuse_another(self, answer: dict[str, Any]) -> None:
        revision = answer.get("revision")
        if revision is None:
            said = self._describe(attempts=3)
            now = f"{said['name']}@{said['revision']}"
        else:
            now = f"{self.name}@{revision}"
        if now != f"{self.name}@{self.revision}":
            raise IntegrityError(
                f"{self.url} was {self.name}@{self.revision} and is now {quote(now)}; the scores so far are kept, and the "
                "same command scores with the new one"
            )


_KINDS: dict[str, Any] = {
    "name": str,
    "revision": str,
    "needs_prompt": bool,
    "temperature": int | float,
    "needs_tags": bool,
    "eval_only": bool,
}


def _parts(encoded: Sequence[str]) -> Iterator[slice]:
    """Requests of at most IMAGES_AT_ONCE images and BYTES_AT_ONCE bytes, but at least one image."""
    start, size = 0, 0
    for number, text in enumerate(encoded):
        if number > start and (number - start == IMAGES_AT_ONCE or size + len(text) > BYTES_AT_ONCE):
            yield slice(start, number)
            start, size = number, 0
        size += len(text)
    if encoded:
        yield slice(start, len(encoded))
