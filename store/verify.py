"""What is looked at each time a store is opened: that its database has what the journal put into it."""

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from ..core.errors import IntegrityError
from . import journal
from .ingest import row_count, taken_parts
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


def verified_parts(store: "PairStore", connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Names of the parts that are in the tables, after comparing each table's row count with what they added to it.

    Raises:
        IntegrityError: where the database is of another schema, or not what was made from the journal.
    """
    _refuse_version(store, schema_version(store, connection))
    try:
        added = dict(connection.execute("select table_name, sum(added) from parts group by all").fetchall())
        counts = {table: row_count(connection, table) for table in journal.TABLES}
        taken = taken_parts(connection)
        n_listed = row_count(connection, "parts")
        size = "select used_blocks, block_size from pragma_database_size() where database_name = current_database()"
        ((n_blocks, block_size),) = connection.execute(size).fetchall()
    except duckdb.Error as error:
        raise _lost_tables(store) from error
    whole_blocks, rest = divmod(store.database.stat().st_size - _HEADERS, block_size)
    # with a write-ahead log, the rest is what a full disk took of a block that was to be added
    if whole_blocks < n_blocks or (rest and not Path(f"{store.database}.wal").exists()):
        raise IntegrityError(f"{store.database} has been cut off; {store.rebuild_hint()}")
    if n_listed != len(taken):  # a write-ahead log was replayed whose rows were in the database already
        raise IntegrityError(f"{store.database} has rows twice; {store.rebuild_hint()}")
    for table, count in counts.items():
        expected = int(added.get(table) or 0)
        if count != expected:
            raise IntegrityError(f"{table} has {count} rows, its journal added {expected}; {store.rebuild_hint()}")
    return taken


def _lost_tables(store: "PairStore") -> IntegrityError:
    return IntegrityError(f"{store.database} has lost tables; {store.rebuild_hint()}")


def _refuse_version(store: "PairStore", version: int) -> None:
    if version > SCHEMA_VERSION:
        raise IntegrityError(
            f"the store {store.path} is of schema {version} and this prefloop knows {SCHEMA_VERSION}; update prefloop"
        )
    if version < SCHEMA_VERSION:
        raise IntegrityError(
            f"the store {store.path} is of schema {version} and this prefloop writes {SCHEMA_VERSION}; "
            f"run `prefloop store migrate --store {store.path}`"
        )
