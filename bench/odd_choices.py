"""Choice models for the experiments of docs/rounds.md: labels that are flipped, random, noisy, or about something else.

    prefloop loop shapes --set relabel.scorers=prefloop.bench.odd_choices:Flipped

They are for the built-in world, and nothing should be trained with them in earnest.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from ..relabel.scorers.pickscore import PickScore
from ..shapes.oracle import check

Scores = NDArray[np.float32]
FLIPPED = 0.3
"""Fraction of a noisy person's answers that are turned around."""


class _Plain:
    revision = "1"
    needs_prompt = True
    temperature = 1.0


class Flipped(_Plain):
    """PickScore of the built-in world with its sign changed: the worse image wins."""

    name = "flipped"

    def __init__(self) -> None:
        self._pickscore = PickScore("shapes")

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Scores:
        return -np.asarray(self._pickscore.score(prompts, images), np.float32)


class Random(_Plain):
    """A number that depends on the image alone and says nothing about it, as spread out as PickScore's."""

    name = "random"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Scores:  # noqa: ARG002
        digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
        return np.array([10 * int.from_bytes(digest[:4], "big") / 2**32 for digest in digests], np.float32)


class Ink(_Plain):
    """How much of the image is covered with color, times 100: a reward that has nothing to do with the prompt."""

    name = "ink"
    needs_prompt = False

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Scores:  # noqa: ARG002
        pixels = [np.asarray(image.convert("RGB"), np.float32) / 255 for image in images]
        return np.array([100 * (each.max(2) - each.min(2)).mean() for each in pixels], np.float32)


class NoisyPerson(_Plain):
    """Compares two images by how many parts of the prompt each satisfies, and answers wrongly in three of ten pairs."""

    name = "noisy-person"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Scores:
        return np.array([_satisfied(prompt, image) for prompt, image in zip(prompts, images, strict=True)], np.float32)

    def choose(self, prompts: Sequence[str], first: Sequence[Image], second: Sequence[Image]) -> Sequence[float | None]:
        answers: list[float | None] = []
        for prompt, a, b in zip(prompts, first, second, strict=True):
            better = np.sign(_satisfied(prompt, a) - _satisfied(prompt, b))
            # the same pair always gets the same answer
            digest = hashlib.sha256(prompt.encode() + a.tobytes() + b.tobytes()).digest()
            if int.from_bytes(digest[:4], "big") / 2**32 < FLIPPED:
                better = -better
            answers.append(float(0.5 + better / 2))
        return answers


def _satisfied(prompt: str, image: Image) -> float:
    """Fraction of the prompt's parts, 0..1."""
    parts = check(prompt, image).values()
    return sum(parts) / len(parts)
