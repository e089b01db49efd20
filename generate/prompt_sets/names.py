"""Names of prompts that a shell completes."""

from pathlib import Path


def known_prompts(_store: Path) -> list[str]:
    """The prompts of the built-in world, and the published sets."""
    from ..prompts import BUILT_IN
    from .registry import set_names

    return [*BUILT_IN, *set_names()]
