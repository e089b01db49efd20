"""A vision-language model behind an OpenAI-compatible endpoint as a judge: it compares both images, in both orders."""

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

# hashed into the revision: another word would be another judge
QUESTION = (
    "Two pictures were made for this prompt:\n\n{prompt}\n\nWhich one is better: does what the prompt asks for, and looks "
    "better? Answer with one word: first, second or tie."
)
MAX_REQUESTS = 8  # at once
TIMEOUT = 120  # seconds
API_KEY = "PREFLOOP_VLM_API_KEY"
_PREFERENCE = {"first": 1.0, "tie": 0.5, "second": 0.0}


class VLM:
    """The checkpoint is URL#MODEL, such as http://localhost:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct; the key is read from the
    environment variable PREFLOOP_VLM_API_KEY."""

    name = "vlm"
    needs_prompt = True
    reads: tuple[str, ...] = ()
    wants_gpu = False  # the server may
    checkpoint_needed = "serve a model and give --checkpoint vlm=http://localhost:8000/v1#MODEL"

    def __init__(self, checkpoint: str | None = None) -> None:
        url, _, self.model = (checkpoint or "").partition("#")
        if not (url.startswith(("http://", "https://")) and self.model):
            raise UsageError(
                f"vlm needs an endpoint and a model: --checkpoint vlm=http://localhost:8000/v1#MODEL; got {checkpoint!r}"
            )
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.revision = files.revision(self.model, QUESTION, "both orders, png, 1")
        self.sources = {"url": url, "model": self.model}

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:  # noqa: ARG002
        raise UsageError(
            "vlm compares two images and cannot score one; `prefloop relabel --scorer vlm` labels pairs with it"
        )

    @cached_property
    def _session(self) -> Any:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        retries = Retry(
            total=5,
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=("POST",),
            raise_on_status=False,
        )
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries, pool_maxsize=MAX_REQUESTS))
        if os.environ.get(API_KEY):
            session.headers["Authorization"] = f"Bearer {os.environ[API_KEY]}"
        return session

    def choose(self, prompts: Sequence[str], first: "Sequence[Image]", second: "Sequence[Image]") -> list[float | None]:
        """1 if the first image is better, 0 if the second, ½ for a tie or if the answer changes with the order; None if
        an answer is not one of the three. (B,)"""
        firsts, seconds = [_data_url(image) for image in first], [_data_url(image) for image in second]
        _ = self._session  # created once, before the threads
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            forward = pool.map(self._ask, prompts, firsts, seconds)
            backward = pool.map(self._ask, prompts, seconds, firsts)
            return [_combine(a, None if b is None else 1 - b) for a, b in zip(forward, backward, strict=True)]

    def _ask(self, prompt: str, first: str, second: str) -> float | None:
        import requests

        images = [{"type": "image_url", "image_url": {"url": url}} for url in (first, second)]
        content = [{"type": "text", "text": QUESTION.format(prompt=prompt)}, *images]
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
            raise PrefloopError(f"{self.url} refuses the key; set {API_KEY}")
        if answer.status_code != 200:
            raise PrefloopError(f"{self.url} answers {answer.status_code}: {answer.text[:200]!r}")
        try:
            return _parse_answer(answer.json()["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise PrefloopError(f"{self.url} does not answer with a chat completion: {answer.text[:200]!r}") from error


def _data_url(image: "Image") -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def _parse_answer(text: str) -> float | None:
    """1, ½ or 0; None unless the answer contains exactly one of the three words."""
    words = set(re.findall(r"\b(first|second|tie)\b", text.lower()))
    return _PREFERENCE[words.pop()] if len(words) == 1 else None


def _combine(forward: float | None, backward: float | None) -> float | None:
    if forward is None or backward is None:
        return None
    return forward if forward == backward else 0.5
