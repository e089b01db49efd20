"""One DuckDB for a process: making one costs 16 ms of processor time, attaching a database to it 1."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

_idle: dict[int, list[duckdb.DuckDBPyConnection]] = {}
"""Engines that nobody uses now, by process: a forked one has none of its parent's threads."""


@contextmanager
def attached(path: Path, *, read_only: bool, readable_since: str | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose own database is the file for a moment; temporary tables and views are gone afterwards.

    What `set` changes stays with the engine, and must be reset.

    Args:
        readable_since: of a new file, the version of DuckDB whose storage it has.

    Raises:
        duckdb.Error: where the file cannot be opened.
    """
    idle = _idle.setdefault(os.getpid(), [])
    try:
        engine = idle.pop()
    except IndexError:  # asked first, another thread could take the last one in between
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
        engine.close()  # after an error it may hold the file still, or be good for nothing
        raise
    idle.append(engine)


def is_broken(error: duckdb.Error) -> bool:
    """Whether the file cannot be used as it is, and not the query."""
    types = (duckdb.IOException, duckdb.FatalException, duckdb.InternalException, duckdb.SerializationException)
    return isinstance(error, types) or "Corrupt database file" in str(error)


def is_held(error: duckdb.Error) -> bool:
    """Whether another process has the file open."""
    return "Could not set lock" in str(error)


def table_with_ids(connection: duckdb.DuckDBPyConnection, query: str, parameters: object = None) -> pa.Table:
    """The answer of a query, its ids as Arrow's UUID; else they are strings."""
    connection.execute("set arrow_lossless_conversion = true")
    try:
        return connection.sql(query, params=parameters).to_arrow_table()
    finally:
        connection.execute("reset arrow_lossless_conversion")


def _spill_folder() -> str:
    """For queries that do not fit into memory."""
    return str(Path(tempfile.gettempdir()) / f"prefloop-{os.getpid()}")
