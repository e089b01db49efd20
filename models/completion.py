"""Names of models that a shell completes."""

from pathlib import Path

from ..store import completion
from .names import BUILT_IN


def known_models(store: Path) -> list[str]:
    """The built-in models, and those that the store knows."""
    return [*BUILT_IN, *(name for name in completion.models(store) if name not in BUILT_IN)]
