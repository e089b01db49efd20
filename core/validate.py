"""Checks that the settings of several stages share."""

import math
from collections.abc import Iterable

from .errors import UsageError


def unknown(what: str, value: str, choices: Iterable[str]) -> UsageError:
    """The error to raise for a name that is not one of the choices."""
    return UsageError(f"unknown {what} {value!r}; choose from {', '.join(choices)}")


def positive(name: str, value: float, maximum: float = math.inf, *, allow_zero: bool = False) -> None:
    """
    Raises:
        UsageError: if the value is nan, infinite, not positive, or above the maximum.
    """
    # an integer may be too large for math.isfinite
    is_finite = isinstance(value, int) or math.isfinite(value)
    if is_finite and (value > 0 or (allow_zero and value == 0)) and value <= maximum:
        return
    allowed = "at least 0" if allow_zero else "positive"
    if math.isfinite(maximum):
        allowed = f"between 0 and {maximum}" if allow_zero else f"positive and at most {maximum}"
    raise UsageError(f"{name} must be {allowed}, got {value}")
