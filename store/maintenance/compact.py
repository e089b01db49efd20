"""Many small journal parts into one for each table. Killed anywhere, nothing is lost: the truth is there twice, then once."""

import duckdb

from ...core.errors import cannot_write
from ...core.files import sync_folder
from .. import journal
from ..dedupe import in_schema
from ..ingest import replace_parts, rows_of_parts, taken_parts
from ..pairstore import PairStore
from ..parts import footer, has_checksum, refuse_damaged

SMALL = 64
"""Rows up to which a part is a small one."""
MANY = 200
"""Small parts of a table that are left as they are."""


def compact(store: PairStore) -> tuple[int, int]:
    """Number of parts before and after.

    A table's new part is on disk before the database knows of it, and the database knows of it before the old parts go.
    Parts of both kinds hold the same rows, so that taking any of them again adds nothing.
    """
    store.ingest()
    with store.session(write=True) as connection:  # nobody takes parts meanwhile; who appends some is not disturbed
        found = journal.parts(store.journal)
        taken = taken_parts(connection)
        for table in journal.TABLES:
            names = [name for name, of in found.items() if of == table and name in taken]
            if len(names) > 1 or not all(map(has_checksum, names)):
                _compact(store, connection, table, names)
    return len(found), len(journal.parts(store.journal))


def compact_small(store: PairStore, table: str) -> int:
    """Make one part of a table's small ones, where there are many: cheap however large the table is. How many there were.

    For writers of single rows, such as people's labels.
    """
    query = "select name from parts where table_name = ? and n_rows <= ?"
    if len(store.rows(query, [table, SMALL])) <= MANY:
        return 0
    with store.session(write=True) as connection:
        there = journal.parts(store.journal)
        names = [name for (name,) in connection.execute(f"{query} order by name", [table, SMALL]).fetchall()]
        names = [name for name in names if name in there]
        if len(names) > 1:
            _compact(store, connection, table, names)
    return len(names)


def _compact(store: PairStore, connection: duckdb.DuckDBPyConnection, table: str, names: list[str]) -> None:
    refuse_damaged(store.journal, names)
    rows = in_schema(connection, table, rows_of_parts(table), paths=[str(store.journal / name) for name in names])
    # an older copy of the database lists what was replaced long ago
    replaced = [*names, *(old for name in names for old in footer(store.journal / name).replaced)]
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
