"""Real scorers that are arithmetic on pixels, for the tests of everything around scorers."""

import os
import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL.Image import Image


def channel_means(images: Sequence[Image]) -> np.ndarray:
    """Means of red, green and blue, 0..255; (B, 3)."""
    return np.array([np.asarray(image, np.float32).reshape(-1, 3).mean(0) for image in images])


class Redness:
    """Mean of red minus mean of green. Counts the images it has seen."""

    name, revision, needs_prompt, temperature = "redness", "1", False, 50.0
    seen: ClassVar[int] = 0

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:  # noqa: ARG002
        type(self).seen += len(images)
        means = channel_means(images)
        return means[:, 0] - means[:, 1]


class Darkness:
    """255 minus the mean of all channels."""

    name, revision, needs_prompt = "darkness", "1", False

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:  # noqa: ARG002
        return 255 - channel_means(images).mean(1)


class Blindness:
    """Redness, but nan for images that are nearly black."""

    name, revision, needs_prompt = "blindness", "1", False

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:  # noqa: ARG002
        red = channel_means(images)[:, 0]
        return np.where(red < 20, np.nan, red)


class Speechless(Redness):
    """Redness, but nan for every prompt with an odd number."""

    name, needs_prompt = "speechless", True

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:
        odd = [any(digit in prompt for digit in "13579") for prompt in prompts]
        return np.where(odd, np.nan, super().score(prompts, images))


class Blank:
    """nan for every image."""

    name, revision, needs_prompt = "blank", "1", False

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:  # noqa: ARG002
        return np.full(len(images), np.nan)


class Constant:
    """The same score for every image."""

    name, revision, needs_prompt = "constant", "1", False

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> list[float]:  # noqa: ARG002
        return [1.0] * len(images)


class EvalOnly(Redness):
    """May not make labels."""

    name, eval_only = "judge", True


class Of01(Redness):
    """Written for 0.1, which called the checkpoint `weights` and eval_only `judge_only`."""

    name, judge_only = "of-0.1", True

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights


class Slow(Redness):
    """Redness that takes its time and logs a line per image, so that a kill interrupts it."""

    name = "slow"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:
        with open(os.environ["SLOW_SCORER_LOG"], "a") as log:
            log.write("scored\n" * len(images))
        time.sleep(0.05)
        return super().score(prompts, images)


class WrongShape:
    """One score for any number of images."""

    name, revision, needs_prompt = "wrong-shape", "1", False

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> list[float]:  # noqa: ARG002
        return [0.0]


class NoScorer:
    """Has none of the attributes."""


class Tagged:
    """Mean of red times the prompt's tag `factor`."""

    name, revision, needs_prompt, needs_tags = "tagged", "1", True, True

    def score(
        self,
        prompts: Sequence[str],  # noqa: ARG002
        images: Sequence[Image],
        tags: Sequence[dict[str, str]],
    ) -> np.ndarray:
        return channel_means(images)[:, 0] * [float(of_prompt["factor"]) for of_prompt in tags]
