"""The oracle as a scorer: 1 where a picture satisfies its prompt wholly, else 0."""

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from ..core.errors import UsageError
from .oracle import judge


class Oracle:
    """May judge in `eval`; `relabel` makes no labels with it."""

    name = "oracle"
    revision = "1"
    needs_prompt = True
    eval_only = True

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:
        """float32 (B,), 0 or 1. UsageError where a prompt is not of the built-in world's grammar."""
        try:
            found = [all(judge(prompt, image).values()) for prompt, image in zip(prompts, images, strict=True)]
        except ValueError as error:
            raise UsageError(f"the oracle reads prompts of the built-in world alone: {error}") from error
        return np.array(found, dtype=np.float32)
