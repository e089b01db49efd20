"""Values for the $names of a query, parsed from the command line."""

import json
import re
from collections.abc import Sequence
from typing import Any

from ...core.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def parameters(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse `-p NAME=VALUE` arguments. Values are bound, never inserted into the text of the query.

    Raises:
        UsageError: if an argument is not NAME=VALUE, or a name is repeated.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UsageError(f"-p takes NAME=VALUE, the name in letters, digits and _, got {argument!r}")
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(f"the parameter {name!r} is not UTF-8 text") from None
        if name in values:
            raise UsageError(f"the parameter {name!r} is given twice")
        values[name] = parsed(value)
    return values


def parsed(value: str) -> Any:
    """A number, true, false, null, a list or a double-quoted string as in JSON; everything else is the text itself."""
    try:
        parsed_value = json.loads(value, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return value
    return value if isinstance(parsed_value, dict) else parsed_value


def _not_json(_: str) -> None:
    raise ValueError  # NaN and Infinity are text: JSON has neither
