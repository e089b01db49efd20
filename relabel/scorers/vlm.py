"""A vision-language model behind an OpenAI-compatible endpoint as a judge: it is shown both pictures, in both orders."""

import base64
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...core.errors import PrefloopError, UsageError
from ...store.images import png_bytes
from . import checkpoints as files

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTION = (
    "Two pictures were made for this prompt:\n\n{prompt}\n\nWhich one is better: does what the prompt asks for, and looks "
    "better? Answer with one word: first, second or tie."
)
AT_ONCE = 8  # requests
TIMEOUT = 120  # seconds
KEY = "PREFLOOP_VLM_API_KEY"
_WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}


class VLM:
    """Weights are URL#MODEL, such as http://localhost:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct; a key is read from the
    environment variable PREFLOOP_VLM_API_KEY."""

    name = "vlm"
    needs_prompt = True

    def __init__(self, weights: str | None = None) -> None:
        url, _, self.model = (weights or "").partition("#")
        if not (url.startswith(("http://", "https://")) and self.model):
            raise UsageError(
                f"vlm needs an endpoint and a model: --checkpoint vlm=http://localhost:8000/v1#MODEL; got {weights!r}"
            )
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.revision = files.revision(self.model, QUESTION, "both orders, png, 1")
        self.sources = {"url": url, "model": self.model}

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:  # noqa: ARG002
        raise UsageError(
            "vlm compares two pictures and scores none; `prefloop relabel --scorer vlm` labels pairs by it"
        )

    @cached_property
    def _session(self) -> Any:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        again = Retry(
            total=5,
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=("POST",),
            raise_on_status=False,
        )
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=again, pool_maxsize=AT_ONCE))
        if os.environ.get(KEY):
            session.headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        return session

    def choose(self, prompts: Sequence[str], first: "Sequence[Image]", second: "Sequence[Image]") -> list[float | None]:
        """Of each pair 1 where the first picture is better, 0 where the second, ½ for a tie, and where the answer
        changes with the order; None where an answer is none of the three. (B,)"""
        one, other = [_data(image) for image in first], [_data(image) for image in second]
        _ = self._session  # made once, before the threads
        with ThreadPoolExecutor(AT_ONCE) as pool:
            forward, backward = pool.map(self._ask, prompts, one, other), pool.map(self._ask, prompts, other, one)
            return [_both(a, None if b is None else 1 - b) for a, b in zip(forward, backward, strict=True)]

    def _ask(self, prompt: str, first: str, second: str) -> float | None:
        import requests

        shown = [{"type": "image_url", "image_url": {"url": url}} for url in (first, second)]
        content = [{"type": "text", "text": QUESTION.format(prompt=prompt)}, *shown]
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": 8,
            "messages": [{"role": "user", "content": content}],
        }
        try:
            answer = self._session.post(self.url, json=body, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise PrefloopError(f"{self.url} does not answer: {type(error).__name__}; is it running?") from error
        if answer.status_code in (401, 403):
            raise PrefloopError(f"{self.url} refuses the key; set {KEY}")
        if answer.status_code != 200:
            raise PrefloopError(f"{self.url} answers {answer.status_code}: {answer.text[:200]!r}")
        try:
            return _read(answer.json()["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise PrefloopError(f"{self.url} gives no chat completion: {answer.text[:200]!r}") from error


def _data(image: "Image") -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def _read(text: str) -> float | None:
    """Of an answer in which exactly one of the three words stands."""
    said = set(re.findall(r"\b(first|second|tie)\b", text.lower()))
    return _WORTH[said.pop()] if len(said) == 1 else None


def _both(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return one if one == other else 0.5
