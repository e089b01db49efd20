"""What a scorer behind a URL says of itself, and a request to it: JSON, checked on both sides. B is the number of images."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...store.images import ImageError, load_image, png_bytes
from ..scorers.calls import Tags, needs_tags
from ..scorers.registry import Scorer, is_eval_only

if TYPE_CHECKING:
    from PIL.Image import Image

TOKEN = "PREFLOOP_SCORER_TOKEN"
"""Environment variable with the bearer token, of the client and of the server."""
MAX_IMAGES = 256  # of a request
MAX_BODY = 64 * 2**20  # bytes of a request
MAX_PIXELS = 4096 * 4096  # of an image
MAX_TOTAL_PIXELS = 8 * MAX_PIXELS  # of a request's images


class RequestError(Exception):
    """A request that cannot be scored."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ScoreRequest:
    prompts: list[str]  # (B,)
    images: "list[Image]"  # (B,)
    tags: Sequence[Tags | None]  # (B,)


def describe(scorer: Scorer) -> dict[str, Any]:
    """The answer to GET."""
    return {
        "name": scorer.name,
        "revision": str(scorer.revision),
        "needs_prompt": bool(scorer.needs_prompt),
        "temperature": float(getattr(scorer, "temperature", 1.0)),
        "needs_tags": needs_tags(scorer),
        "eval_only": is_eval_only(scorer),
    }


def encode_image(image: "Image") -> str:
    """Base64 of a PNG, which loses nothing."""
    return base64.b64encode(png_bytes(image)).decode()


def parse_request(body: bytes, *, with_tags: bool) -> ScoreRequest:
    """
    Args:
        with_tags: whether the scorer reads tags; they are ignored if it does not.

    Raises:
        RequestError: if the body is not such a request; nothing large is decoded before its size is known.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON") from error
    if not isinstance(content, dict):
        raise RequestError("the body must be a JSON object with prompts and images")
    prompts, images = (_texts(content, name) for name in ("prompts", "images"))
    if not images:
        raise RequestError("there are no images to score")
    if len(images) > MAX_IMAGES:
        raise RequestError(f"{len(images)} images, more than {MAX_IMAGES} at once", 413)
    if len(prompts) != len(images):
        raise RequestError(f"{len(prompts)} prompts for {len(images)} images; there must be one for each")
    tags = _tags(content.get("tags"), len(images)) if with_tags else [None] * len(images)
    return ScoreRequest(prompts, _decode(images), tags)


def _texts(content: dict, name: str) -> list[str]:
    texts = content.get(name)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name} must be a list of texts")
    return texts


def _tags(tags: Any, n: int) -> list[Tags | None]:
    if not isinstance(tags, list) or not all(one is None or isinstance(one, dict) for one in tags):
        raise RequestError("this scorer needs tags: a list with an object or null for each image")
    if len(tags) != n:
        raise RequestError(f"{len(tags)} tags for {n} images; there must be one for each")
    return [one or None for one in tags]


def _decode(texts: Sequence[str]) -> "list[Image]":
    images, n_pixels = [], 0
    for number, text in enumerate(texts):
        try:
            image = load_image(base64.b64decode(text, validate=True), max_pixels=MAX_PIXELS)
        except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
            raise RequestError(f"images[{number}] is not base64") from error
        except ImageError as error:
            status = 413 if error.reason == "too large" else 400
            raise RequestError(f"images[{number}]: {error}", status) from error
        n_pixels += image.width * image.height
        if n_pixels > MAX_TOTAL_PIXELS:
            raise RequestError(f"the images have more than {MAX_TOTAL_PIXELS} pixels in total; send fewer at once", 413)
        images.append(image)
    return images
