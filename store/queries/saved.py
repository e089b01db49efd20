"""Saved queries: each is an SQL file whose first lines describe it and its parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ...core.errors import UsageError
from .parameters import parsed

_PARAMETER = re.compile(r"-- \$(\w+) = (.+?): (.+)")


@dataclass(frozen=True)
class Parameter:
    default: str
    """As on the command line."""
    description: str


@dataclass(frozen=True)
class Saved:
    name: str
    description: str
    parameters: Mapping[str, Parameter]
    sql: str
    """Without the lines that describe it."""

    def values(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with some overridden.

        Raises:
            UsageError: if the query has no parameter with a name.
        """
        for name in overrides:
            if name not in self.parameters:
                names = f"choose from {', '.join(self.parameters)}" if self.parameters else "it has none"
                raise UsageError(f"the query {self.name} has no parameter {name!r}; {names}")
        return {name: parsed(known.default) for name, known in self.parameters.items()} | dict(overrides)


@cache
def saved_queries() -> dict[str, Saved]:
    """By name, sorted."""
    paths = (path for path in files(__package__ or "").iterdir() if path.name.endswith(".sql"))
    return {path.name[:-4]: _read(path.name[:-4], path.read_text()) for path in sorted(paths, key=lambda p: p.name)}


def saved_query(name: str) -> Saved:
    """Raises UsageError if the name is unknown."""
    try:
        return saved_queries()[name]
    except KeyError:
        raise UsageError(f"unknown query {name!r}; choose from {', '.join(saved_queries())}") from None


def _read(name: str, text: str) -> Saved:
    lines = text.splitlines()
    n_comments = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    description, *lines_of_parameters = lines[:n_comments]
    parameters = {}
    for line in lines_of_parameters:
        match = _PARAMETER.fullmatch(line)
        assert match, f"{name}.sql: {line!r} does not describe a parameter"
        parameters[match[1]] = Parameter(match[2], match[3])
    return Saved(name, description.removeprefix("-- "), parameters, "\n".join(lines[n_comments:]))
