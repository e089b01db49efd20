"""Checks on every opening of a store: the schema version, and that the database has the rows the journal added."""

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from ..core.errors import IntegrityError
from . import journal
from .ingest import ingested_parts, row_count
from .rebuild import SCHEMA_VERSION

if TYPE_CHECKING:
    from .pairstore import PairStore

_HEADERS = 3 * 4096  # bytes of a DuckDB file before its blocks


def schema_version(store: "PairStore", connection: duckdb.DuckDBPyConnection) -> int:
    try:
        ((version,),) = connection.execute("select schema_version from meta").fetchall()
    except duckdb.Error as error:
        raise _lost_tables(store) from error
    return version


def refuse_newer(store: "PairStore", version: int) -> None:
    """Raises:
    IntegrityError: if a newer prefloop made the store.
    """
    if version > SCHEMA_VERSION:
        raise IntegrityError(
            f"the store {store.path} has schema version {version} and this prefloop reads {SCHEMA_VERSION}; "
            "update prefloop"
        )


def verified_parts(store: "PairStore", connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Names of the ingested parts, after comparing each table's row count with the rows they added to it.

    Raises:
        IntegrityError: if the database has another schema version, or is not what was built from the journal.
    """
    version = schema_version(store, connection)
    refuse_newer(store, version)
    if version < SCHEMA_VERSION:
        raise IntegrityError(
            f"the store {store.path} has schema version {version} and this prefloop reads {SCHEMA_VERSION}; "
            f"run `prefloop store migrate --store {store.path}`"
        )
    try:
        added = dict(connection.execute("select table_name, sum(rows_added) from parts group by all").fetchall())
        counts = {table: row_count(connection, table) for table in journal.TABLES}
        ingested = ingested_parts(connection)
        n_listed = row_count(connection, "parts")
        size = "select used_blocks, block_size from pragma_database_size() where database_name = current_database()"
        ((n_blocks, block_size),) = connection.execute(size).fetchall()
    except duckdb.Error as error:
        raise _lost_tables(store) from error
    whole_blocks, remainder = divmod(store.database.stat().st_size - _HEADERS, block_size)
    # with a write-ahead log, the remainder is what a full disk took of a block that was to be added
    if whole_blocks < n_blocks or (remainder and not Path(f"{store.database}.wal").exists()):
        raise IntegrityError(f"{store.database} is truncated; {store.rebuild_hint()}")
    if n_listed != len(ingested):  # a write-ahead log was replayed whose rows were in the database already
        raise IntegrityError(f"{store.database} has duplicate rows; {store.rebuild_hint()}")
    for table, count in counts.items():
        expected = int(added.get(table) or 0)
        if count != expected:
            raise IntegrityError(
                f"the table {table} has {count} rows, but the journal added {expected}; {store.rebuild_hint()}"
            )
    return ingested


def _lost_tables(store: "PairStore") -> IntegrityError:
    return IntegrityError(f"{store.database} lacks tables; {store.rebuild_hint()}")
