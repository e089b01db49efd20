"""One DuckDB instance for a process: creating one costs 16 ms of CPU time, attaching a database to it 1 ms."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

_idle: dict[int, list[duckdb.DuckDBPyConnection]] = {}
"""Idle DuckDB instances by process id: a forked process does not have its parent's threads."""


@contextmanager
def connect(path: Path, *, read_only: bool, readable_since: str | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Attach the database file for the duration of the block; temporary tables and views are gone afterwards.

    What `set` changes stays with the instance, and must be reset.

    Args:
        readable_since: oldest version of DuckDB that can read the file, if it is a new one.

    Raises:
        duckdb.Error: if the file cannot be opened.
    """
    idle = _idle.setdefault(os.getpid(), [])
    try:
        engine = idle.pop()
    except IndexError:  # not checked first: another thread could take the last one in between
        engine = duckdb.connect(config={"temp_directory": _spill_folder()})
    try:
        quoted = str(path).replace("'", "''")
        options = f"type duckdb{', read_only' if read_only else ''}"
        if readable_since:
            options += f", storage_version '{readable_since}'"
        engine.execute(f"attach '{quoted}' as store ({options})")
        with engine.cursor() as connection:
            connection.execute("use store")
            yield connection
        engine.execute("detach store")
    except BaseException:
        engine.close()  # after an error it may still hold the file, or be unusable
        raise
    idle.append(engine)


def is_broken(error: duckdb.Error) -> bool:
    """Whether the error is about the file, not the query."""
    types = (duckdb.IOException, duckdb.FatalException, duckdb.InternalException, duckdb.SerializationException)
    return isinstance(error, types) or "Corrupt database file" in str(error)


def is_held(error: duckdb.Error) -> bool:
    """Whether another process has the file open."""
    return "Could not set lock" in str(error)


def holder(error: duckdb.Error) -> str:
    """The process that has the file open, if the error of `is_held` names it."""
    pid = re.search(r"PID (\d+)", str(error))
    return f"process {pid[1]}" if pid else "another program"


def table_with_ids(connection: duckdb.DuckDBPyConnection, query: str, parameters: object = None) -> pa.Table:
    """The result of a query with ids as Arrow UUIDs; DuckDB's default is strings."""
    connection.execute("set arrow_lossless_conversion = true")
    try:
        return connection.sql(query, params=parameters).to_arrow_table()
    finally:
        connection.execute("reset arrow_lossless_conversion")


def _spill_folder() -> str:
    """Folder for queries that do not fit into memory."""
    return str(Path(tempfile.gettempdir()) / f"prefloop-{os.getpid()}")
