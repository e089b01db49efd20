"""A condition in SQL, parsed as one expression before it becomes part of a query."""

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from ..core.errors import UsageError
from .query import CLOSED, first_lines

_ONE = "it must be one expression, such as margin > 1 and split = 'train'"
_PLAIN = {"type", "select_list", "aggregate_handling", "from_table"}
_CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
"""Words that are read as a call where no column has their name."""
_MACROS = {"age of one time", "ago", "pg_conf_load_time", "pg_postmaster_start_time"}
"""What reads the clock though DuckDB does not tell so of each overload."""
_TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "score_pairs", "unnest"}
"""Those that give the same rows each time; others run SQL that stands in a text, or tell about the process."""
_UNSTEADY = """
    select function_name from duckdb_functions()
    where function_name in (select unnest($names)) and stability is not null
    group by all having count(*) filter (where stability = 'CONSISTENT') = 0 order by all
"""


def condition(text: str, option: str = "--where") -> str:
    """The condition in brackets, to follow `where` or `and`; whatever it says, it can only leave rows out.

    The same rows of the same store fulfil it at any time: what depends on chance or the clock is refused.

    Args:
        option: where it was given, for messages.

    Raises:
        UsageError: where it is not one expression, or not steady.
    """
    try:
        _refuse(text)
    except (UsageError, duckdb.Error) as error:
        raise UsageError(f"{option} {text!r} cannot be used: {first_lines(error)}") from error
    return f"({text}\n)"  # the line may end in a comment


def _refuse(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("it is not valid UTF-8") from None
    with duckdb.connect(config=CLOSED) as connection:
        # without brackets, so that none of the text's own can close one of ours
        expression = _expression(connection, f"select {text}\n")
        if _expression(connection, f"select ({text}\n)") != expression:
            raise UsageError(_ONE)
        _refuse_unsteady(connection, expression)


def _expression(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    """The syntax tree of a query that selects one expression and nothing else."""
    ((serialized,),) = connection.execute("select json_serialize_sql($sql::varchar)", {"sql": sql}).fetchall()
    try:
        tree = json.loads(serialized, object_hook=_without_places)
    except RecursionError:
        raise UsageError("it is nested too deeply") from None
    if tree["error"]:
        # what DuckDB says of a statement behind a semicolon speaks of our way of parsing
        raise UsageError(_ONE if "serialized to json" in tree["error_message"] else tree["error_message"])
    node = tree["statements"][0]["node"]
    plain = (
        len(tree["statements"]) == 1
        and node["type"] == "SELECT_NODE"
        and node["from_table"]["type"] == "EMPTY"
        and node["aggregate_handling"] == "STANDARD_HANDLING"
        and len(node["select_list"]) == 1
        and not node["select_list"][0]["alias"]
        and not (node["select_list"][0]["class"] == "STAR" and not node["select_list"][0]["columns"])
        and not any(_given(value) for name, value in node.items() if name not in _PLAIN)
    )
    if not plain:
        raise UsageError(_ONE)
    return node["select_list"][0]


def _without_places(node: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if not name.startswith("query_location")}


def _given(value: Any) -> bool:
    """Whether a part of a query is there: absent ones are null, or empty, or hold an empty list."""
    return bool(value) and value != {"map": []}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _refuse_unsteady(connection: duckdb.DuckDBPyConnection, expression: dict[str, Any]) -> None:
    calls: set[str] = set()
    for node in _nodes(expression):
        kind = node.get("class") or node.get("type")
        if kind == "PARAMETER":
            raise UsageError(f"it has a parameter, ${node['identifier']}; write its value")
        if kind == "TABLE_FUNCTION" and (name := node["function"]["function_name"].lower()) not in _TABLE_FUNCTIONS:
            raise UsageError(f"it reads {name}(), which a condition cannot")
        if node.get("sample"):
            raise UsageError("it takes a sample, which would be another one each time")
        modifiers = {modifier["type"] for modifier in node.get("modifiers") or ()}
        if modifiers & {"LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER"} and "ORDER_MODIFIER" not in modifiers:
            raise UsageError("it has a limit without an order, so that its rows could be others each time")
        if kind in ("FUNCTION", "WINDOW"):
            name = node["function_name"].lower()
            calls.add("age of one time" if name == "age" and len(node["arguments"]) == 1 else name)
        if kind == "COLUMN_REF" and len(node["column_names"]) == 1 and node["column_names"][0].lower() in _CLOCKS:
            calls.add(node["column_names"][0].lower())
    found = {name for (name,) in connection.execute(_UNSTEADY, {"names": sorted(calls)}).fetchall()}
    if unsteady := sorted(found | (calls & (_CLOCKS | _MACROS))):
        raise UsageError(f"{unsteady[0]} could say something else each time; the same rows must be chosen again")
