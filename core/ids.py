"""Ids that follow from content: the first 128 bits of a sha256, as UUID. Equal things have equal ids everywhere."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from uuid import UUID


def content_bytes(data: bytes) -> bytes:
    """The 16 bytes of an id, for millions of them without UUID objects."""
    return hashlib.sha256(data).digest()[:16]


def content_id(data: bytes) -> UUID:
    return UUID(bytes=content_bytes(data))


def prompt_id(text: str) -> UUID:
    """From the exact UTF-8 text: prompts that differ in a space are two prompts."""
    return content_id(text.encode())


def image_id(data: bytes) -> UUID:
    """From the file's bytes."""
    return content_id(data)


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces; nan and inf are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def generation_id(prompt: str, model: UUID, sampling: Mapping, seed: int, index: int) -> UUID:
    """From everything that decides an image; resuming looks for these ids.

    Args:
        sampling: steps, guidance scale, scheduler and so on; JSON values.
        index: number of the image among those of the prompt, from 0.
    """
    return content_id(_generation(prompt, model, sampling, seed, index).encode())


def generation_bytes(prompts: Iterable[str], model: UUID, sampling: Mapping, seed: int, n: int) -> bytearray:
    """`generation_id` of the first n images of each prompt, 16 bytes each, prompt by prompt.

    Only what differs is formatted for each image, which makes it ten times as fast.
    """
    before, after = _generation("", model, sampling, seed, 0).split('"prompt":""', 1)  # a model's id has no quotes
    first, before = before[: len('{"index":')], before[len('{"index":0') :]
    ids = bytearray()
    for prompt in prompts:
        rest = f'{before}"prompt":{canonical(prompt)}{after}'
        for index in range(n):
            ids += content_bytes(f"{first}{index}{rest}".encode())
    return ids


def _generation(prompt: str, model: UUID, sampling: Mapping, seed: int, index: int) -> str:
    # the key "sampler" stays: it is hashed into the ids of existing stores
    return canonical({"prompt": prompt, "model": str(model), "sampler": dict(sampling), "seed": seed, "index": index})


def noise_seed(prompt: str, seed: int, index: int) -> int:
    """Seed of an image's initial noise. The model is not in it: two models compared on a prompt start from the same noise."""
    return content_id(canonical({"prompt": prompt, "seed": seed, "index": index}).encode()).int >> 65


def pair_id(prompt: UUID, image_a: UUID, image_b: UUID) -> UUID:
    """From a prompt and two images in the order of their ids."""
    if not image_a < image_b:
        raise ValueError(f"a pair is stored with the smaller image id first, got {image_a} and {image_b}")
    return content_id(prompt.bytes + image_a.bytes + image_b.bytes)


def split_of(prompt: UUID) -> str:
    """ "validation" for one prompt in twenty, else "train"; a function of the prompt, so none is on both sides."""
    return "validation" if prompt.int % 20 == 0 else "train"
