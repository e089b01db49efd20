"""Read-only SQL queries: no writes, and no access to files, the network or Python variables."""

import csv
import io
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import duckdb

from ..core.errors import PrefloopError, UsageError
from ..core.text import csv_cell, json_text, visible
from .connection import is_broken
from .pairstore import PairStore

if TYPE_CHECKING:
    import pyarrow as pa

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
    """Run one query and return its result.

    Args:
        timeout: seconds after which the query is interrupted.
        parameters: values of the query's $names; they are bound, never inserted into its text.
        as_ids: return ids as Arrow UUIDs, not as strings.

    Raises:
        UsageError: if the SQL is invalid, a $name has no value or a value no $name, or the query does more than read the store.
        PrefloopError: if it takes longer than the timeout.
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
            table = result.to_arrow_table()
            return table.rename_columns(_distinct(table.schema.names))
        except duckdb.InterruptException as error:
            raise PrefloopError(
                f"the query took longer than {timeout:g} s; set --timeout, or narrow the query"
            ) from error
        except duckdb.Error as error:
            if is_broken(error):
                raise
            raise UsageError(first_lines(error)) from error


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


def write(result: "pa.Table", format_: str, out: BinaryIO) -> None:
    """Write a result in one of the formats. Text is UTF-8.

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
    try:
        rows = result.to_pylist()
    except (OverflowError, ValueError) as error:  # Python has the years 1 to 9999, and microseconds
        raise UsageError(f"a date or time of the result cannot be written: {error}; cast it to varchar") from error
    if format_ == "json":
        out.write((json_text([_strict(row) for row in rows], indent=1) + "\n").encode())
    elif format_ == "jsonl":
        out.write("".join(json_text(_strict(row)) + "\n" for row in rows).encode())
    elif format_ == "csv":
        lines = [
            list(map(csv_cell, result.schema.names)),
            *([csv_cell(value) for value in row.values()] for row in rows),
        ]
        out.write("".join(map(_csv_line, lines)).encode())
    else:
        out.write(_table(result.schema.names, rows).encode())


def _strict(value: Any) -> Any:
    """The value as strict JSON: nan and inf become null, times and bytes text."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _csv_line(values: list) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)  # with any other line ending, \r in a text is not quoted
    return text.getvalue()[:-2] + "\n"


def _table(names: list[str], rows: list[dict]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=f"{len(rows)} row{'' if len(rows) == 1 else 's'}", caption_justify="left")
    numeric = {name for name in names if all(isinstance(row[name], int | float) or row[name] is None for row in rows)}
    for name in names:
        table.add_column(Text(visible(name)), justify="right" if name in numeric and rows else "left")
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in names))
    text = io.StringIO()
    width = Console().width if sys.stdout.isatty() else 200
    Console(file=text, width=width).print(table)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return visible(str(value))
