"""The pair store: prompts, images, pairs, scores and labels in one folder. Nothing here imports torch."""

from typing import TYPE_CHECKING, Any

from ..core.errors import (
    BadDataError,
    BusyError,
    IntegrityError,
    Interrupted,
    NumericalError,
    PrefloopError,
    UsageError,
)
from ..core.ids import generation_id, image_id, pair_id, prompt_id
from .images import ImageError, load_image

if TYPE_CHECKING:
    from .pairstore import PairStore

__all__ = [
    "BadDataError",
    "BusyError",
    "ImageError",
    "IntegrityError",
    "Interrupted",
    "NumericalError",
    "PairStore",
    "PrefloopError",
    "UsageError",
    "generation_id",
    "image_id",
    "load_image",
    "pair_id",
    "prompt_id",
]


def __getattr__(name: str) -> Any:
    """Import PairStore when it is first used: a help needs neither DuckDB nor Arrow."""
    if name != "PairStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .pairstore import PairStore

    globals()[name] = PairStore
    return PairStore
