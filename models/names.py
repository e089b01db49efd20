"""Names of models that a shell completes."""

from pathlib import Path

from ..store import completion


def known_models(store: Path) -> list[str]:
    """The built-in models, and those that the store knows."""
    from .resolve import BUILT_IN

    return [*BUILT_IN, *(name for name in completion.models(store) if name not in BUILT_IN)]
