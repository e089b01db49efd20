"""Journal parts into the tables of the database, and which of them are there."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from . import journal
from .errors import IntegrityError, cannot_write, is_full

ROWS_AT_ONCE = 500_000
"""Rows of a transaction, above which it is ended: until then all of them stay in memory."""


def taken_parts(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Names of the parts whose rows are in the tables."""
    return {name for (name,) in connection.execute("select name from parts").fetchall()}


def row_count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """Rows of a table."""
    ((count,),) = connection.execute(f"select count(*) from {table}").fetchall()
    return count


def take(connection: duckdb.DuckDBPyConnection, folder: Path, found: Mapping[str, str]) -> int:
    """Put the rows of parts, name → table, into their tables; how many were new.

    In one transaction, or in several where there are very many rows: a part and the note that it was taken stay together.

    Args:
        folder: the journal.
    """
    added_in_all = uncommitted = 0
    try:
        connection.execute("begin")
        for table in journal.TABLES:
            rows = {name: journal.n_rows(folder / name) for name, of in found.items() if of == table}
            for names in _stretches(rows):
                before = row_count(connection, table)
                connection.execute(_insert(table), {"paths": [str(folder / name) for name in names]})
                added = row_count(connection, table) - before
                added_in_all += added
                # what the parts added together is written beside the first of them
                taken = pa.table(
                    {
                        "name": names,
                        "table_name": [table] * len(names),
                        "n_rows": [rows[name] for name in names],
                        "added": [added] + [0] * (len(names) - 1),
                    }
                )
                connection.register("taken", taken)
                connection.execute("insert into parts by name select * from taken")
                connection.unregister("taken")
                uncommitted += sum(taken["n_rows"].to_pylist())
                if uncommitted >= ROWS_AT_ONCE:  # a crash after this leaves parts that were not yet taken
                    connection.execute("commit")
                    connection.execute("begin")
                    uncommitted = 0
        connection.execute("commit")
    except (duckdb.Error, OSError, pa.ArrowInvalid) as error:
        if is_full(error):
            raise cannot_write(folder.parent, error) from error
        raise IntegrityError(f"the journal of {folder.parent} cannot be taken into its tables: {error}") from error
    return added_in_all


def _stretches(rows: Mapping[str, int]) -> Iterator[list[str]]:
    """Names of parts, in their order, so many together that their rows fit in memory."""
    names: list[str] = []
    total = 0
    for name, n in rows.items():
        if names and total + n > ROWS_AT_ONCE:
            yield names
            names, total = [], 0
        names.append(name)
        total += n
    if names:
        yield names


def rows_of_parts(table: str) -> str:
    """A query for the rows that count among those of the parts $paths, each key once."""
    # DuckDB reads many parts in any order; the oldest row of a key stays, as when parts are taken one by one
    order = "filename, file_row_number"
    if table == "runs":  # a later row of a run replaces the earlier one
        order = "updated desc, filename desc"
    return f"""
        select {", ".join(journal.TABLES[table].names)}
        from read_parquet($paths, filename = true, file_row_number = true)
        qualify row_number() over (partition by {", ".join(journal.key(table))} order by {order}) = 1"""


def _insert(table: str) -> str:
    if table == "runs":
        names = journal.TABLES[table].names
        updates = ", ".join(f"{name} = excluded.{name}" for name in names if name != "run_id")
        return f"""
            insert into runs by name {rows_of_parts(table)}
            on conflict (run_id) do update set {updates} where excluded.updated >= runs.updated"""
    return f"insert or ignore into {table} by name {rows_of_parts(table)}"
