"""Read a model's settings: only known names with checked plain values; everything else in the file is ignored or
refused."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import IntegrityError, PrefloopError

Check = Callable[[Any], bool]


def positive_integer(highest: int) -> Check:
    """An integer from 1 to `highest`: a file cannot ask for a model that does not fit into memory."""
    return lambda value: type(value) is int and 0 < value <= highest


def positive_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def token_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def boolean(value: Any) -> bool:
    return type(value) is bool


def string(value: Any) -> bool:
    return type(value) is str


def one_of(*names: str) -> Check:
    return lambda value: type(value) is str and value in names


def exactly(number: int) -> Check:
    return lambda value: type(value) is int and value == number


WIDTH, LAYERS, PIXELS, TOKENS, VOCABULARY = (
    positive_integer(65_536),
    positive_integer(1_000),
    positive_integer(4_096),
    positive_integer(65_536),
    positive_integer(10_000_000),
)


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        PrefloopError: if the file does not exist.
        IntegrityError: if it is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PrefloopError(f"no file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a model's settings file; download it again") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} is not a model's settings file: not a JSON object; download it again")
    return content


def known(
    path: Path, values: Any, checks: Mapping[str, Check], section: str = "", *, refuse_others: bool = False
) -> dict[str, Any]:
    """The values of the known names that are not null.

    Args:
        values: the section of the file.
        refuse_others: refuse entries of other names, which could change the model; by default they are ignored.

    Raises:
        IntegrityError: if a value does not pass its check, or an entry is refused.
    """
    if not isinstance(values, dict):
        raise IntegrityError(f"{path} has no section {section or 'of settings'}; download it again")
    present = {name: value for name, value in values.items() if value is not None}
    for name, value in present.items():
        full = f"{section}.{name}" if section else name
        if name not in checks:
            if refuse_others:
                raise IntegrityError(
                    f"{path} sets {full[:80]}, which prefloop does not load: a scorer's settings may only be plain "
                    f"numbers and names ({', '.join(checks)}); use another checkpoint"
                )
        elif not checks[name](value):
            raise IntegrityError(f"{path}: {full} cannot be {str(value)[:40]!r}; download it again")
    return {name: value for name, value in present.items() if name in checks}
