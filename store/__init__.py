"""The pair store: prompts, images, pairs, scores and labels in one folder. Nothing here imports torch."""

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
