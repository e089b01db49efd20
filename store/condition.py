"""SQL conditions, parsed as one expression before they become part of a query."""

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from ..core.errors import UsageError
from .query import CLOSED, first_lines

_ONE = "it must be one expression, such as margin > 1 and split = 'train'"
_PLAIN = {"type", "select_list", "aggregate_handling", "from_table"}
_CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
"""Words that are function calls unless a column has their name."""
_MACROS = {"age of one argument", "ago", "pg_conf_load_time", "pg_postmaster_start_time"}
"""Functions that read the clock although DuckDB does not mark every overload so."""
_TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "score_pairs", "unnest"}
"""Table functions with stable results; others run SQL from a string, or read the state of the process."""
_UNSTABLE = """
    select function_name from duckdb_functions()
    where function_name in (select unnest($names)) and stability is not null
    group by all having count(*) filter (where stability = 'CONSISTENT') = 0 order by all
"""


def condition(text: str, option: str = "--where") -> str:
    """The condition in parentheses, to follow `where` or `and`; whatever it says, it can only exclude rows.

    It selects the same rows of the same store at any time: conditions on chance or the clock are refused.

    Args:
        option: the option it comes from, for messages.

    Raises:
        UsageError: if it is not one expression, or not stable.
    """
    try:
        _refuse(text)
    except (UsageError, duckdb.Error) as error:
        raise UsageError(f"{option} {text!r} cannot be used: {first_lines(error)}") from error
    return f"({text}\n)"  # its last line may end in a comment


def _refuse(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("it is not valid UTF-8") from None
    with duckdb.connect(config=CLOSED) as connection:
        # without parentheses, so that the text cannot close one of ours
        expression = _expression(connection, f"select {text}\n")
        if _expression(connection, f"select ({text}\n)") != expression:
            raise UsageError(_ONE)
        _refuse_unstable(connection, expression)


def _expression(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    """The syntax tree of a query that selects one expression and nothing else."""
    ((serialized,),) = connection.execute("select json_serialize_sql($sql::varchar)", {"sql": sql}).fetchall()
    try:
        tree = json.loads(serialized, object_hook=_without_locations)
    except RecursionError:
        raise UsageError("it is nested too deeply") from None
    if tree["error"]:
        # for a statement after a semicolon, DuckDB's message is about json_serialize_sql
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
        and not any(_is_present(value) for name, value in node.items() if name not in _PLAIN)
    )
    if not plain:
        raise UsageError(_ONE)
    return node["select_list"][0]


def _without_locations(node: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if not name.startswith("query_location")}


def _is_present(value: Any) -> bool:
    """Whether a part of a query is present: absent parts are null, or empty, or an empty map."""
    return bool(value) and value != {"map": []}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _refuse_unstable(connection: duckdb.DuckDBPyConnection, expression: dict[str, Any]) -> None:
    calls: set[str] = set()
    for node in _nodes(expression):
        type_ = node.get("class") or node.get("type")
        if type_ == "PARAMETER":
            raise UsageError(f"it has a parameter, ${node['identifier']}; write the value instead")
        if type_ == "TABLE_FUNCTION" and (name := node["function"]["function_name"].lower()) not in _TABLE_FUNCTIONS:
            raise UsageError(f"it reads {name}(), which is not allowed in a condition")
        if node.get("sample"):
            raise UsageError("it takes a sample, which could differ each time")
        modifiers = {modifier["type"] for modifier in node.get("modifiers") or ()}
        if modifiers & {"LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER"} and "ORDER_MODIFIER" not in modifiers:
            raise UsageError("it has a limit without an order, so its rows could differ each time")
        if type_ in ("FUNCTION", "WINDOW"):
            name = node["function_name"].lower()
            calls.add("age of one argument" if name == "age" and len(node["arguments"]) == 1 else name)
        if type_ == "COLUMN_REF" and len(node["column_names"]) == 1 and node["column_names"][0].lower() in _CLOCKS:
            calls.add(node["column_names"][0].lower())
    not_consistent = {name for (name,) in connection.execute(_UNSTABLE, {"names": sorted(calls)}).fetchall()}
    if unstable := sorted(not_consistent | (calls & (_CLOCKS | _MACROS))):
        raise UsageError(f"{unstable[0]} could differ each time; a condition must always select the same rows")
