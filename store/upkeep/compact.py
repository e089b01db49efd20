"""Many small journal parts into one for each table. Killed anywhere, nothing is lost: the truth is there twice, then once."""

import duckdb

from .. import journal
from ..errors import cannot_write
from ..lacking import in_schema
from ..pairstore import PairStore
from ..taking import rows_of_parts, taken_parts


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
                _compact(store, connection, table, names)
    return len(found), len(journal.parts(store.journal))


def _compact(store: PairStore, connection: duckdb.DuckDBPyConnection, table: str, names: list[str]) -> None:
    paths = [str(store.journal / name) for name in names]
    rows = in_schema(connection, table, rows_of_parts(table), paths=paths)
    # of the oldest part's time: what was appended later stays later
    new = journal.part_name(table, names[0].split("-")[0])
    journal.write_part(store.journal / new, rows)
    connection.execute("begin")
    connection.execute("delete from parts where name in (select unnest(?))", [names])
    # the table came from these parts alone, so that they added what it holds
    connection.execute(
        "insert into parts values ($name, $table, $n, $n)", {"name": new, "table": table, "n": rows.num_rows}
    )
    connection.execute("commit")
    try:
        for name in names:
            (store.journal / name).unlink()
        journal.sync_folder(store.journal)
    except OSError as error:
        raise cannot_write(store.journal, error) from error
