"""The oracle as a scorer: 1 if an image satisfies every part of its prompt, else 0."""

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from ..core.errors import UsageError
from .oracle import check


class Oracle:
    """For `eval`; `relabel` makes no labels with it."""

    name = "oracle"
    revision = "1"
    needs_prompt = True
    reads: tuple[str, ...] = ()
    wants_gpu = False
    eval_only = True

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:
        """float32 (B,), 0 or 1. UsageError if a prompt is not in the grammar of the built-in world."""
        try:
            satisfied = [all(check(prompt, image).values()) for prompt, image in zip(prompts, images, strict=True)]
        except ValueError as error:
            raise UsageError(f"the oracle reads only prompts of the built-in world: {error}") from error
        return np.array(satisfied, dtype=np.float32)
