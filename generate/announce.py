"""What is about to be generated, in a line before the first bar."""

from typing import TYPE_CHECKING

from ..core.errors import PrefloopError
from ..core.text import duration, plural
from .defaults import describe_sampling

if TYPE_CHECKING:
    from pathlib import Path

    from .stage import Plan

MANY = 500
"""Missing images from which on the time is estimated, which takes a few seconds."""


def announcement(planned: "Plan", store: "Path", *, chosen_prompts: bool) -> str | None:
    """Such as "generating 3600 images with shapes, 4 for each of 900 prompts of shapes (10 steps, guidance 2.5), into
    prefloop-store; about 9 min …"; None if nothing is missing.

    Args:
        chosen_prompts: the user named the prompts; otherwise the line says how to use fewer of the built-in ones.
    """
    config, n, n_missing = planned.config, len(planned.generations), len(planned.missing)
    if not n_missing:
        return None
    images = plural(n, "image") if n_missing == n else f"{n_missing} of {plural(n, 'image')} (the store has the others)"
    parts = [
        f"generating {images} with {config.model}, {config.images_per_prompt} for each of "
        f"{plural(len(planned.prompts), 'prompt')} of {config.prompts} ({describe_sampling(config)}), into {store}"
    ]
    if (time := _time(planned)) is not None:
        parts.append(time)
    if not chosen_prompts and config.limit is None:
        parts.append("--prompts names others, --limit N uses the first N")
    return "; ".join(parts)


def _time(planned: "Plan") -> str | None:
    """None for few images, or if the cost of the model cannot be counted."""
    from .estimate import estimate

    if len(planned.missing) < MANY:
        return None
    try:
        estimated = estimate(planned)
    except PrefloopError:  # to generate says it better
        return None
    if estimated is None:
        return None
    return f"about {duration(estimated.seconds)} on {estimated.device} without loading, prompts and decoding"
