"""Read-only SQL queries: no writes, and no access to files, the network or Python variables."""

import csv
import datetime
import io
import json
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import duckdb

from ..core.errors import PrefloopError, UsageError
from ..core.text import csv_cell, json_text, plural, visible
from .connection import is_broken
from .pairstore import PairStore

if TYPE_CHECKING:
    import pyarrow as pa

WIDTH = 100
"""Columns of text that a table for people takes when stdout is not a terminal."""
LONGEST_NAME = 60
"""Characters; a column of a table that holds longer words may cut them, and one that does not goes on on the next line."""
Format = Literal["table", "json", "jsonl", "csv", "parquet"]
# A connection with these settings can read only its own database.
CLOSED: dict[str, Any] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
}


def ask(
    store: PairStore,
    sql: str,
    timeout: float = 60.0,
    parameters: Mapping[str, Any] | None = None,
    *,
    as_ids: bool = False,
) -> "pa.Table":
    """Run one query and return its result. Times without a zone are UTC, as everything in a store is, and get that zone; fields
    of JSON columns say so in their metadata, for `write`.

    Args:
        timeout: seconds after which the query is interrupted.
        parameters: values of the query's $names; they are bound, never inserted into its text.
        as_ids: return ids as Arrow UUIDs, not as strings.

    Raises:
        UsageError: if the SQL is invalid, a $name has no value or a value no $name, or the query does more than read the store.
        PrefloopError: if it takes longer than the timeout, or memory runs out.
    """
    if not timeout > 0 or timeout > 86_400:
        raise UsageError(f"timeout must be above 0 and at most 86400 seconds, got {timeout}")
    if not sql.strip():
        raise UsageError("the query is empty; try `select * from preferences limit 5`")
    for name in parameters or ():
        if f"${name}" not in sql:
            raise UsageError(f"the query has no ${name}; remove the parameter {name}")
    config: dict[str, Any] = CLOSED | {
        "max_execution_time": str(int(timeout * 1000) or 1),
        "lock_configuration": "true",
        "arrow_lossless_conversion": str(as_ids).lower(),
    }
    open_database = lambda: closing(duckdb.connect(store.database, read_only=True, config=config))  # noqa: E731
    with store.opened(open_database) as connection:
        try:
            result = connection.sql(sql, params=dict(parameters) if parameters else None)
            if result is None:
                raise UsageError("not a query: start with select, from, with, show or describe")
            types = list(map(str, result.types))
            table = result.to_arrow_table()
            return _with_meanings(table.rename_columns(_distinct(table.schema.names)), types)
        except duckdb.InterruptException as error:
            raise PrefloopError(
                f"the query took longer than {timeout:g} s; set --timeout, or narrow the query"
            ) from error
        except duckdb.OutOfMemoryException as error:
            raise PrefloopError(
                "the query needs more memory than there is; narrow it, or free memory or room for temporary files"
            ) from error
        except duckdb.Error as error:
            if is_broken(error):
                raise
            raise UsageError(first_lines(error)) from error


_JSON = {b"logical_type": b"json"}


def _with_meanings(table: "pa.Table", types: list[str]) -> "pa.Table":
    """The table with UTC as the zone of its times, and its JSON columns marked; `types` are DuckDB's."""
    import pyarrow as pa

    columns, schema = [], []
    for field, column, type_ in zip(table.schema, table.columns, types, strict=True):
        meaning = field
        if pa.types.is_timestamp(field.type) and field.type.tz is None:
            meaning = field.with_type(pa.timestamp(field.type.unit, "UTC"))
        elif type_.removesuffix("[]") == "JSON":
            meaning = field.with_metadata(_JSON)
        columns.append(column.cast(meaning.type))
        schema.append(meaning)
    return pa.table(columns, pa.schema(schema))


def _distinct(names: list[str]) -> list[str]:
    """The column names, with a number after a repeated one, since rows become dictionaries."""
    distinct: dict[str, None] = {}
    for name in names:
        free, number = name, 2
        while free in distinct or (free != name and free in names):
            free, number = f"{name}_{number}", number + 1
        distinct[free] = None
    return list(distinct)


def first_lines(error: Exception) -> str:
    """DuckDB's message without its excerpt of the query."""
    if unknown := re.search(r"not provided for the following parameters: (.+)", str(error)):
        return f"the query needs ${unknown[1].replace(', ', ', $')}; give -p NAME=VALUE for each"
    return " ".join(line.strip() for line in str(error).split("\n\n")[0].splitlines())


def write(result: "pa.Table", format_: str, out: BinaryIO, width: int = 200) -> None:
    """Write a result in one of the formats. Text is UTF-8.

    Args:
        width: columns of text that a table may take if stdout is not a terminal, whose width counts otherwise.

    Raises:
        UsageError: if the format cannot hold a value.
    """
    import pyarrow as pa

    if format_ == "parquet":
        import pyarrow.parquet as pq

        try:
            pq.write_table(result, out, compression="zstd")
        except pa.ArrowNotImplementedError as error:
            raise UsageError(f"Parquet cannot hold a column of the result: {error}; cast it to varchar") from error
        return
    if format_ == "json":
        out.write((json_text(json_rows(result), indent=1) + "\n").encode())
    elif format_ == "jsonl":
        out.write("".join(json_text(row) + "\n" for row in json_rows(result)).encode())
    elif format_ == "csv":
        lines = [result.schema.names, *(map(_csv_value, row.values()) for row in _rows(result))]
        out.write("".join(_csv_line(list(map(csv_cell, line))) for line in lines).encode())
    else:
        out.write(_table(result.schema.names, _rows(result), width).encode())


def json_rows(result: "pa.Table") -> list[dict[str, Any]]:
    """The rows as strict JSON can hold them; values of JSON columns are parsed.

    Raises:
        UsageError: if a date or time is outside of what can be written.
    """
    parsed = [field.name for field in result.schema if field.metadata == _JSON]
    return [_strict(row | {name: _from_json(row[name]) for name in parsed}) for row in _rows(result)]


def _rows(result: "pa.Table") -> list[dict[str, Any]]:
    try:
        return result.to_pylist()
    except (OverflowError, ValueError) as error:  # Python has the years 1 to 9999, and microseconds
        raise UsageError(f"a date or time of the result cannot be written: {error}; cast it to varchar") from error


def _from_json(value: Any) -> Any:
    """The value of a JSON column, which is text, or a list of texts."""
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value if value is None else json.loads(value)


def _strict(value: Any) -> Any:
    """The value as strict JSON: nan and inf become null, times, durations and bytes text, numbers of any width numbers."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if hasattr(value, "nanoseconds"):  # an interval, which is a tuple too
        return _interval(value)
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return utc(value) if isinstance(value, datetime.datetime) else str(value)


def utc(time: datetime.datetime) -> str:
    """A time as ISO 8601 in UTC, to the second, such as "2026-03-02T09:00:00Z"; one without a zone is UTC."""
    if time.tzinfo is not None:
        time = time.astimezone(datetime.UTC)
    return time.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _interval(value: Any) -> str:
    """An interval, such as "1 month 2 days 03:00:05"."""
    months, days, nanoseconds = value
    sign, seconds = "-" if nanoseconds < 0 else "", abs(nanoseconds) // 10**9
    parts = [plural(months, "month")] * bool(months) + [plural(days, "day")] * bool(days)
    if seconds or not parts:
        parts.append(f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}")
    return " ".join(parts)


def _csv_value(value: Any) -> Any:
    """The value for CSV: numbers as they are, true and false, lists and structs as JSON."""
    if value is None or (isinstance(value, int | float | Decimal) and not isinstance(value, bool)):
        return value
    plain = _strict(value)
    return plain if isinstance(plain, str) else json_text(plain)


def _csv_line(values: list) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)  # with any other line ending, \r in a text is not quoted
    return text.getvalue()[:-2] + "\n"


def _table(names: list[str], rows: list[dict], width: int) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=f"{len(rows)} row{'' if len(rows) == 1 else 's'}", caption_justify="left")
    numeric = {
        name for name in names if all(row[name] is None or isinstance(row[name], int | float | Decimal) for row in rows)
    }
    cells = [[_cell(row[name]) for name in names] for row in rows]
    for column, name in enumerate(names):
        longest = max((len(row[column]) for row in cells), default=0)
        table.add_column(
            Text(visible(name)),
            justify="right" if name in numeric and rows else "left",
            overflow="fold" if longest <= LONGEST_NAME else "ellipsis",
        )
    for row in cells:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    width = Console().width if sys.stdout.isatty() else width
    Console(file=text, width=width).print(table)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return visible(str(_csv_value(value)))
