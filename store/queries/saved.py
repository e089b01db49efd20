"""Queries that come with the package: each a file of SQL whose first lines say what it answers and what it takes."""

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
    """As it would be given on the command line."""
    about: str


@dataclass(frozen=True)
class Saved:
    name: str
    answers: str
    parameters: Mapping[str, Parameter]
    sql: str
    """Without the lines that tell about it."""

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, and the defaults of the rest.

        Raises:
            UsageError: where it takes no parameter of a name.
        """
        for name in given:
            if name not in self.parameters:
                there = ", ".join(self.parameters) or "none"
                raise UsageError(f"the query {self.name} has no parameter {name!r}; there are {there}")
        return {name: parsed(one.default) for name, one in self.parameters.items()} | dict(given)


@cache
def saved_queries() -> dict[str, Saved]:
    """By name, in order."""
    found = (path for path in files(__package__ or "").iterdir() if path.name.endswith(".sql"))
    return {path.name[:-4]: _read(path.name[:-4], path.read_text()) for path in sorted(found, key=lambda p: p.name)}


def saved_query(name: str) -> Saved:
    """Raises UsageError where there is none of that name."""
    try:
        return saved_queries()[name]
    except KeyError:
        raise UsageError(f"no query is called {name!r}; there are {', '.join(saved_queries())}") from None


def _read(name: str, text: str) -> Saved:
    lines = text.splitlines()
    n_told = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    answers, *rest = lines[:n_told]
    parameters = {}
    for line in rest:
        found = _PARAMETER.fullmatch(line)
        assert found, f"{name}.sql: {line!r} is no parameter"
        parameters[found[1]] = Parameter(found[2], found[3])
    return Saved(name, answers.removeprefix("-- "), parameters, "\n".join(lines[n_told:]))
