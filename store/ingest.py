"""Journal parts into the tables of the database, and which of them are there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from ..core.errors import IntegrityError, cannot_write, is_full
from . import journal
from .parts import footer, refuse_damaged

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

    Raises:
        IntegrityError: where a part is not what was written; it is named.
    """
    refuse_damaged(folder, found)
    added_in_all = uncommitted = 0
    try:
        footers = {name: footer(folder / name) for name in found}
        connection.execute("begin")
        for table in journal.TABLES:
            rows = {name: footers[name].n_rows for name, of in found.items() if of == table}
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
                for name in names:
                    _forget_replaced(connection, folder, name, footers[name].replaced)
                uncommitted += sum(taken["n_rows"].to_pylist())
                if uncommitted >= ROWS_AT_ONCE:  # a crash after this leaves parts that were not yet taken
                    connection.execute("commit")
                    connection.execute("begin")
                    uncommitted = 0
        connection.execute("commit")
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        if is_full(error):
            raise cannot_write(folder.parent, error) from error
        raise IntegrityError(f"the journal of {folder.parent} cannot be taken into its tables: {error}") from error
    return added_in_all


def _forget_replaced(connection: duckdb.DuckDBPyConnection, folder: Path, name: str, replaced: Sequence[str]) -> None:
    """A database from before a compaction: the part stands for those that it replaced and that are gone."""
    if not replaced:
        return
    listed = connection.execute("select name from parts where name in (select unnest(?))", [replaced]).fetchall()
    gone = [old for (old,) in listed if not (folder / old).exists()]
    if gone:
        replace_parts(connection, gone, name)


def replace_parts(connection: duckdb.DuckDBPyConnection, old: Sequence[str], new: str) -> None:
    """Take parts from the list; what they had added is counted to the new one, which is in it."""
    connection.execute(
        "update parts set added = added + (select sum(added) from parts where name in (select unnest($old))) where name = $new",
        {"old": old, "new": new},
    )
    connection.execute("delete from parts where name in (select unnest(?))", [old])


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
    return f"""
        select {", ".join(journal.TABLES[table].names)}
        from read_parquet($paths)
        qualify row_number() over (partition by {", ".join(journal.key(table))} order by {_order(table)}) = 1"""


def _order(table: str, of: str = "") -> str:
    """What decides between two rows of one key: the smaller one stays, column by column.

    Never a clock, nor which row came first: in whatever order parts are taken, the same rows stay. Of a run's rows it is the
    one that tells its end: done, failed and interrupted come before running.
    """
    columns = []
    for column in journal.TABLES[table]:
        if column.name not in journal.key(table):
            plain = pa.types.is_primitive(column.type) or column.type == pa.uuid()
            columns.append(
                f"{of}{column.name}{'' if plain else '::varchar'}"
            )  # text and lists of it are JSON and ids there
    return ", ".join(columns)


def _insert(table: str) -> str:
    key = journal.key(table)
    updates = ", ".join(f"{name} = excluded.{name}" for name in journal.TABLES[table].names if name not in key)
    return f"""
        insert into {table} by name {rows_of_parts(table)}
        on conflict ({", ".join(key)}) do update set {updates}
        where row({_order(table, "excluded.")}) < row({_order(table, f"{table}.")})"""
