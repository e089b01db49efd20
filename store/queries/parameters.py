"""Values for the $names of a query, as they are given on the command line."""

import json
import re
from collections.abc import Sequence
from typing import Any

from ...core.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """From `-p NAME=VALUE`, each name once. Values are bound, never put into the text of the query.

    Raises:
        UsageError: where one is no NAME=VALUE, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UsageError(f"-p takes NAME=VALUE, the name in letters, digits and _, got {one!r}")
        try:
            one.encode()
        except UnicodeEncodeError:
            raise UsageError(f"the parameter {name!r} is no UTF-8 text") from None
        if name in found:
            raise UsageError(f"the parameter {name!r} is given twice")
        found[name] = parsed(value)
    return found


def parsed(value: str) -> Any:
    """A number, true, false, null, a list or a text in double quotes as JSON has them; everything else is the text itself."""
    try:
        found = json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return value
    return value if isinstance(found, dict) else found


def _no_number(_: str) -> None:
    raise ValueError  # NaN and Infinity are text, as JSON has neither
