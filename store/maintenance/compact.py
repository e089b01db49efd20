"""Merge many small journal parts into one per table. At every moment the rows are in the old parts, the new one, or both."""

import duckdb

from ...core.errors import cannot_write
from ...core.files import sync_folder
from .. import journal
from ..dedupe import in_schema
from ..ingest import ingested_parts, replace_parts, rows_of_parts
from ..pairstore import PairStore
from ..parts import footer, has_checksum, refuse_damaged

SMALL = 64
"""Rows up to which a part is small."""
MANY = 200
"""Small parts of a table that are left as they are."""


def compact(store: PairStore) -> tuple[int, int]:
    """Number of parts before and after.

    A table's new part is on disk before the database lists it, and the database lists it before the old parts are deleted.
    Both hold the same rows, so ingesting either again adds nothing.
    """
    store.ingest()
    with store.session(write=True) as connection:  # no process ingests meanwhile; appending is not disturbed
        parts = journal.parts(store.journal)
        ingested = ingested_parts(connection)
        for table in journal.TABLES:
            names = [name for name, part_table in parts.items() if part_table == table and name in ingested]
            if len(names) > 1 or not all(map(has_checksum, names)):
                _compact(store, connection, table, names)
    return len(parts), len(journal.parts(store.journal))


def compact_small(store: PairStore, table: str) -> int:
    """Merge a table's small parts if there are many, which is cheap however large the table is; returns how many there were.

    For writers of single rows, such as people's labels.
    """
    query = "select name from parts where table_name = ? and n_rows <= ?"
    if len(store.rows(query, [table, SMALL])) <= MANY:
        return 0
    with store.session(write=True) as connection:
        parts = journal.parts(store.journal)
        names = [name for (name,) in connection.execute(f"{query} order by name", [table, SMALL]).fetchall()]
        names = [name for name in names if name in parts]
        if len(names) > 1:
            _compact(store, connection, table, names)
    return len(names)


def _compact(store: PairStore, connection: duckdb.DuckDBPyConnection, table: str, names: list[str]) -> None:
    refuse_damaged(store.journal, names)
    footers = {store.journal / name: footer(store.journal / name) for name in names}
    rows = in_schema(connection, table, *rows_of_parts(table, footers))
    # an older copy of the database may list parts that were replaced long ago
    replaced = [*names, *(old for end in footers.values() for old in end.replaced)]
    time_text = names[0].split("-")[0]  # the oldest part's
    new = journal.write_part(store.journal, table, rows, time_text, replaced).name
    connection.execute("begin")
    connection.execute("insert into parts values (?, ?, ?, 0)", [new, table, rows.num_rows])
    replace_parts(connection, names, new)
    connection.execute("commit")
    try:
        for name in names:
            (store.journal / name).unlink()
        sync_folder(store.journal)
    except OSError as error:
        raise cannot_write(store.journal, error) from error
