"""Call a scorer with what it reads: prompts and images, and the prompts' tags if it needs them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import UsageError
from .dual_encoder import DualEncoderScorer
from .own_code import as_columns, as_scores
from .registry import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image

Tags = Mapping[str, Any]


def needs_tags(scorer: Scorer | type) -> bool:
    return bool(getattr(scorer, "needs_tags", False))


def scores_of(
    scorer: Scorer, prompts: Sequence[str], images: "Sequence[Image]", tags: Sequence[Tags | None] | None = None
) -> NDArray[np.float32]:
    """Scores (B,) of B images. Call it inside of `own_code`.

    Args:
        tags: of each prompt, None for one without; read only if the scorer needs them.

    Raises:
        PrefloopError: if the scorer does not give one number for each image.
    """
    if not needs_tags(scorer):
        return as_scores(scorer, scorer.score(prompts, images), len(images))
    score: Any = scorer.score  # takes a third argument, which the protocol leaves out
    return as_scores(scorer, score(prompts, images, [None] * len(images) if tags is None else list(tags)), len(images))


def columns_of(scorer: Any) -> tuple[str, ...]:
    """Names of a scorer's further columns."""
    return () if isinstance(scorer, DualEncoderScorer) else tuple(getattr(scorer, "columns", ()))


def scores_and_columns(
    scorer: Any, prompts: Sequence[str], images: "Sequence[Image]", tags: Sequence[str | None]
) -> NDArray[np.float32]:
    """Scores (B,) of B images, or (B, 1 + columns) if the scorer has further columns. Call it inside of `own_code`.

    Args:
        tags: of each prompt, as the store keeps them.
    """
    if further := columns_of(scorer):
        return as_columns(scorer, scorer.score_columns(prompts, images), len(images), 1 + len(further))
    return scores_of(scorer, prompts, images, [parse_tags(text) for text in tags])


def n_truncated(scorer: Any, prompts: list[str]) -> int:
    """How many prompts are longer than a scorer reads; 0 if it does not tell."""
    count = getattr(scorer, "n_truncated", None)
    return 0 if count is None else int(count(prompts))


def parse_tags(text: str | None) -> Tags | None:
    """Tags as the store keeps them, in JSON; None if there are none."""
    tags = json.loads(text) if text else None
    return tags or None


def refuse_without_tags(scorers: Iterable[Scorer], tags: Iterable[Tags | None], prompts: str) -> None:
    """
    Args:
        tags: of the prompts to score.
        prompts: where they are from.

    Raises:
        UsageError: if a scorer needs tags, and none of the prompts has any.
    """
    needing = [scorer for scorer in scorers if needs_tags(scorer)]
    if needing and not any(tags):
        raise UsageError(
            f"{needing[0].name} reads the tags of prompts, and no prompt of {prompts} has any; a prompt file's other "
            "columns are its tags"
        )
