"""Many small journal parts into one for each table. Killed anywhere, nothing is lost: the truth is there twice, then once."""

import duckdb

from .. import journal
from ..errors import cannot_write
from ..lacking import in_schema
from ..pairstore import PairStore
from ..taking import rows_of_parts, taken_parts

SMALL = 64
"""Rows up to which a part is a small one."""
MANY = 200
"""Small parts of a table that are left as they are."""


def compact(store: PairStore) -> tuple[int, int]:
    """Number of parts before and after.

    A table's new part is on disk before the database knows of it, and the database knows of it before the old parts go.
    Parts of both kinds hold the same rows, so that taking any of them again adds nothing.
    """
    store.absorb()
    with store.session(write=True) as connection:  # nobody takes parts meanwhile; who appends some is not disturbed
        found = journal.parts(store.journal)
        taken = taken_parts(connection)
        for table in journal.TABLES:
            names = [name for name, of in found.items() if of == table and name in taken]
            if len(names) > 1:
                _compact(store, connection, table, names, rows_of_parts(table))
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
            # a row that an older part has otherwise was never taken, and must not come before that part now
            same = " and ".join(f"f.{column} is not distinct from t.{column}" for column in journal.TABLES[table].names)
            taken = f"select f.* from ({rows_of_parts(table)}) f semi join {table} t on {same}"
            _compact(store, connection, table, names, taken)
    return len(names)


def _compact(store: PairStore, connection: duckdb.DuckDBPyConnection, table: str, names: list[str], query: str) -> None:
    paths = [str(store.journal / name) for name in names]
    rows = in_schema(connection, table, query, paths=paths)
    # of the oldest part's time: what was appended later stays later
    new = journal.part_name(table, names[0].split("-")[0])
    journal.write_part(store.journal / new, rows)
    connection.execute("begin")
    ((added,),) = connection.execute(
        "select sum(added) from parts where name in (select unnest(?))", [names]
    ).fetchall()
    connection.execute("delete from parts where name in (select unnest(?))", [names])
    connection.execute("insert into parts values (?, ?, ?, ?)", [new, table, rows.num_rows, int(added)])
    connection.execute("commit")
    try:
        for name in names:
            (store.journal / name).unlink()
        journal.sync_folder(store.journal)
    except OSError as error:
        raise cannot_write(store.journal, error) from error
