"""Plain values of a model's settings: names we know, each checked. Nothing else of such a file goes any further."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import IntegrityError, PrefloopError

Check = Callable[[Any], bool]


def whole(highest: int) -> Check:
    """A whole number from 1 up to the highest that makes sense: a file cannot ask for a model that never gets made."""
    return lambda value: type(value) is int and 0 < value <= highest


def number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def token(value: Any) -> bool:
    return type(value) is int and value >= 0


def flag(value: Any) -> bool:
    return type(value) is bool


def text(value: Any) -> bool:
    return type(value) is str


def one_of(*names: str) -> Check:
    return lambda value: type(value) is str and value in names


WIDTH, LAYERS, PIXELS, TOKENS, WORDS = whole(65_536), whole(1_000), whole(4_096), whole(65_536), whole(10_000_000)


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        PrefloopError: where there is no such file.
        IntegrityError: where it is not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PrefloopError(f"there is no file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a model's settings file; fetch it again") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{path} is not a model's settings file: it holds no object; fetch it again")
    return found


def known(
    path: Path, found: Any, checks: Mapping[str, Check], section: str = "", *, refuse_others: bool = False
) -> dict[str, Any]:
    """The values of the known names that are set.

    Args:
        found: the section of the file.
        refuse_others: where an entry of another name might change the model; else such entries are not read.

    Raises:
        IntegrityError: where a value does not pass its check, or an entry is refused.
    """
    if not isinstance(found, dict):
        raise IntegrityError(f"{path} has no section {section or 'of settings'}; fetch it again")
    values = {name: value for name, value in found.items() if value is not None}
    for name, value in values.items():
        full = f"{section}.{name}" if section else name
        if name not in checks:
            if refuse_others:
                raise IntegrityError(
                    f"{path} sets {full[:80]}, which prefloop does not load: a scorer's settings may only be plain "
                    f"numbers and names ({', '.join(checks)}); use another checkpoint"
                )
        elif not checks[name](value):
            raise IntegrityError(f"{path}: {full} cannot be {str(value)[:40]!r}; fetch it again")
    return {name: value for name, value in values.items() if name in checks}
