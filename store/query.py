"""Questions to the store in SQL, read-only in every sense: no writes, no files, no network, no Python variables."""

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
# A connection with these settings reads its own database and nothing else.
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
    """The answer of one query.

    Args:
        timeout: seconds after which the query is ended.
        parameters: values of the query's $names; they are bound, and never become a part of its text.
        as_ids: ids come as Arrow's UUID, not as strings.

    Raises:
        UsageError: where the SQL is wrong, a $name has no value or a value no $name, or it asks for more than reading the store.
        PrefloopError: where it takes longer than the timeout.
    """
    if not timeout > 0 or timeout > 86_400:
        raise UsageError(f"timeout must be above 0 and at most 86400 seconds, got {timeout}")
    if not sql.strip():
        raise UsageError("the query is empty; try `select * from preferences limit 5`")
    for name in parameters or ():
        if f"${name}" not in sql:
            raise UsageError(f"the query has no ${name}; leave the parameter {name} out")
    config: dict[str, Any] = CLOSED | {
        "max_execution_time": str(int(timeout * 1000) or 1),
        "lock_configuration": "true",
        "arrow_lossless_conversion": str(as_ids).lower(),
    }
    connect = lambda: closing(duckdb.connect(store.database, read_only=True, config=config))  # noqa: E731
    with store.opened(connect) as connection:
        try:
            answer = connection.sql(sql, params=dict(parameters) if parameters else None)
            if answer is None:
                raise UsageError("that is no question: a query begins with select, from, with, show or describe")
            table = answer.to_arrow_table()
            return table.rename_columns(_distinct(table.schema.names))
        except duckdb.InterruptException as error:
            raise PrefloopError(f"the query took longer than {timeout:g} s; give --timeout, or ask for less") from error
        except duckdb.Error as error:
            if is_broken(error):
                raise
            raise UsageError(first_lines(error)) from error


def _distinct(names: list[str]) -> list[str]:
    """Columns of one name get a number behind it: rows are kept by name."""
    found: dict[str, None] = {}
    for name in names:
        free, number = name, 2
        while free in found or (free != name and free in names):
            free, number = f"{name}_{number}", number + 1
        found[free] = None
    return list(found)


def first_lines(error: Exception) -> str:
    """What DuckDB says, without its drawing of the query."""
    if unknown := re.search(r"not provided for the following parameters: (.+)", str(error)):
        return f"the query asks for ${unknown[1].replace(', ', ', $')}; give -p NAME=VALUE for each"
    return " ".join(line.strip() for line in str(error).split("\n\n")[0].splitlines())


def write(answer: "pa.Table", form: str, out: BinaryIO) -> None:
    """The answer in one of the formats. Text is UTF-8.

    Raises:
        UsageError: where a value has no place in the format.
    """
    import pyarrow as pa

    if form == "parquet":
        import pyarrow.parquet as pq

        try:
            pq.write_table(answer, out, compression="zstd")
        except pa.ArrowNotImplementedError as error:
            raise UsageError(f"Parquet cannot hold a column of the answer: {error}; cast it to varchar") from error
        return
    try:
        rows = answer.to_pylist()
    except (OverflowError, ValueError) as error:  # Python knows the years 1 to 9999, and microseconds
        raise UsageError(f"a date or time of the answer cannot be written: {error}; cast it to varchar") from error
    if form == "json":
        out.write((json_text([_strict(row) for row in rows], indent=1) + "\n").encode())
    elif form == "jsonl":
        out.write("".join(json_text(_strict(row)) + "\n" for row in rows).encode())
    elif form == "csv":
        lines = [
            list(map(csv_cell, answer.schema.names)),
            *([csv_cell(value) for value in row.values()] for row in rows),
        ]
        out.write("".join(map(_csv_line, lines)).encode())
    else:
        out.write(_table(answer.schema.names, rows).encode())


def _strict(value: Any) -> Any:
    """nan and inf have no place in JSON; times and bytes are text there."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _csv_line(values: list) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)  # with another ending a \r in a text is not quoted
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
