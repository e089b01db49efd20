"""Journal parts into the tables of the database, and which of them are there."""

from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from . import journal
from .errors import IntegrityError, cannot_write, is_full


def taken_parts(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Names of the parts whose rows are in the tables."""
    return {name for (name,) in connection.execute("select name from parts").fetchall()}


def row_count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """Rows of a table."""
    ((count,),) = connection.execute(f"select count(*) from {table}").fetchall()
    return count


def take(connection: duckdb.DuckDBPyConnection, folder: Path, found: Mapping[str, str]) -> int:
    """Put the rows of parts, name → table, into their tables, in one transaction; how many were new.

    Args:
        folder: the journal.
    """
    added_in_all = 0
    try:
        connection.execute("begin")
        for table in journal.TABLES:
            names = [name for name, of in found.items() if of == table]
            if not names:
                continue
            paths = [str(folder / name) for name in names]
            before = row_count(connection, table)
            connection.execute(_insert(table), {"paths": paths})
            added = row_count(connection, table) - before
            added_in_all += added
            # what the parts added together is written beside the first of them
            rows = [(name, table, journal.n_rows(folder / name)) for name in names]
            taken = pa.table(
                {
                    "name": [name for name, _, _ in rows],
                    "table_name": [of for _, of, _ in rows],
                    "n_rows": [n for _, _, n in rows],
                    "added": [added] + [0] * (len(rows) - 1),
                }
            )
            connection.register("taken", taken)
            connection.execute("insert into parts by name select * from taken")
            connection.unregister("taken")
        connection.execute("commit")
    except (duckdb.Error, OSError, pa.ArrowInvalid) as error:
        if is_full(error):
            raise cannot_write(folder.parent, error) from error
        raise IntegrityError(f"the journal of {folder.parent} cannot be taken into its tables: {error}") from error
    return added_in_all


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
