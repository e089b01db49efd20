"""Checks of single settings, whose errors name the option."""

import math
from collections.abc import Collection

from ..core.errors import UsageError


def check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    """None passes, as in check_range: it is the default of a setting that may be left out."""
    if value is not None and value not in choices:
        raise UsageError(f"unknown {name.replace('_', '-')} {value!r}; choose from {', '.join(choices)}")


def check_range(
    name: str,
    value: float | None,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    if value is None:
        return
    option = name.replace("_", "-")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        is_finite = False
    if not is_finite:
        raise UsageError(f"{option} must be a finite number, got {value}")
    if value <= above and above > -math.inf:
        raise UsageError(f"{option} must be above {above:g}, got {value:g}")
    if not at_least <= value <= at_most:
        limit = f"at least {at_least:g}" if value < at_least else f"at most {at_most:g}"
        raise UsageError(f"{option} must be {limit}, got {value:g}")
