"""Ingest journal parts: insert their rows into the tables, and record which parts are in."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import duckdb
import pyarrow as pa

from ..core.errors import IntegrityError, cannot_write, is_full
from . import journal
from .parts import Footer, footer, refuse_damaged

ROWS_AT_ONCE = 500_000
"""Commit after this many rows, to bound memory."""


def ingested_parts(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Names of the parts whose rows are in the tables."""
    return {name for (name,) in connection.execute("select name from parts").fetchall()}


def row_count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """Rows of a table."""
    if not has_table(connection, table):
        return 0
    ((count,),) = connection.execute(f"select count(*) from {table}").fetchall()
    return count


def has_table(connection: duckdb.DuckDBPyConnection, table: str) -> bool:
    """False only for a table that stores of this schema version may lack."""
    if table not in journal.CREATED_LATER:
        return True
    query = "select 1 from duckdb_tables() where database_name = current_database() and table_name = ?"
    return bool(connection.execute(query, [table]).fetchall())


def ingest_parts(connection: duckdb.DuckDBPyConnection, folder: Path, parts: Mapping[str, str]) -> int:
    """Insert the rows of parts, name → table, into their tables; returns how many were new.

    Uses one transaction, or several if there are very many rows: a part and the record that it was ingested stay together.

    Args:
        folder: the journal.

    Raises:
        IntegrityError: if a part is not what was written; it is named.
    """
    refuse_damaged(folder, parts)
    added_in_all = uncommitted = 0
    try:
        footers = {name: footer(folder / name) for name in parts}
        connection.execute("begin")
        for table in journal.TABLES:
            rows = {name: footers[name].n_rows for name, part_table in parts.items() if part_table == table}
            if rows and not has_table(connection, table):
                connection.execute((files("prefloop.store") / f"{table}.sql").read_text())
            for names in _batches(rows):
                before = row_count(connection, table)
                insert, paths = _insert(table, {folder / name: footers[name] for name in names})
                connection.execute(insert, paths)
                added = row_count(connection, table) - before
                added_in_all += added
                # rows that the parts added together are recorded on the first of them
                ingested = pa.table(
                    {
                        "name": names,
                        "table_name": [table] * len(names),
                        "n_rows": [rows[name] for name in names],
                        "rows_added": [added] + [0] * (len(names) - 1),
                    }
                )
                connection.register("ingested", ingested)
                connection.execute("insert into parts by name select * from ingested")
                connection.unregister("ingested")
                for name in names:
                    _forget_replaced(connection, folder, name, footers[name].replaced)
                uncommitted += sum(ingested["n_rows"].to_pylist())
                if uncommitted >= ROWS_AT_ONCE:  # a crash after this leaves parts that are not ingested yet
                    connection.execute("commit")
                    connection.execute("begin")
                    uncommitted = 0
        connection.execute("commit")
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        if is_full(error):
            raise cannot_write(folder.parent, error) from error
        raise IntegrityError(f"the journal of {folder.parent} cannot be ingested: {error}") from error
    return added_in_all


def _forget_replaced(connection: duckdb.DuckDBPyConnection, folder: Path, name: str, replaced: Sequence[str]) -> None:
    """In a database from before a compaction, the new part takes the place of the parts it replaced, if they are gone."""
    if not replaced:
        return
    listed = connection.execute("select name from parts where name in (select unnest(?))", [replaced]).fetchall()
    gone = [old for (old,) in listed if not (folder / old).exists()]
    if gone:
        replace_parts(connection, gone, name)


def replace_parts(connection: duckdb.DuckDBPyConnection, old: Sequence[str], new: str) -> None:
    """Remove parts from the list and add their row counts to the new part, which is listed already."""
    connection.execute(
        "update parts set rows_added = rows_added + (select sum(rows_added) from parts where name in (select unnest($old))) "
        "where name = $new",
        {"old": old, "new": new},
    )
    connection.execute("delete from parts where name in (select unnest(?))", [old])


def _batches(rows: Mapping[str, int]) -> Iterator[list[str]]:
    """Names of parts, in their order, in groups whose rows fit in memory."""
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


def rows_of_parts(table: str, footers: Mapping[Path, Footer]) -> tuple[str, dict[str, list[str]]]:
    """A query, and its parameters, for the rows that count among those of parts, each key once."""
    paths: dict[str, list[str]] = defaultdict(list)  # of one selection, since parts of 0.1 have other column names
    for path, end in footers.items():
        paths[journal.selection(table, end.columns)].append(str(path))
    parameters = {f"paths_{number}": names for number, names in enumerate(paths.values())}
    parts = " union all ".join(
        f"select {selection} from read_parquet($paths_{number})" for number, selection in enumerate(paths)
    )
    query = f"""
        from ({parts})
        qualify row_number() over (partition by {", ".join(journal.key(table))} order by {_order(table)}) = 1"""
    return query, parameters


def _order(table: str, prefix: str = "") -> str:
    """The columns that decide between two rows with the same key: the smaller row stays, compared column by column.

    Neither a clock nor the order of arrival decides: in whatever order parts are ingested, the same rows stay. For runs it
    is the row that says how the run ended: done, failed and interrupted sort before running.
    """
    columns = []
    for column in journal.TABLES[table]:
        if column.name not in journal.key(table):
            plain = pa.types.is_primitive(column.type) or column.type == pa.uuid()
            # the tables hold text and lists of text as JSON and ids
            columns.append(f"{prefix}{column.name}{'' if plain else '::varchar'}")
    return ", ".join(columns)


def _insert(table: str, footers: Mapping[Path, Footer]) -> tuple[str, dict[str, list[str]]]:
    rows, parameters = rows_of_parts(table, footers)
    key = journal.key(table)
    updates = ", ".join(f"{name} = excluded.{name}" for name in journal.TABLES[table].names if name not in key)
    statement = f"""
        insert into {table} by name {rows}
        on conflict ({", ".join(key)}) do update set {updates}
        where row({_order(table, "excluded.")}) < row({_order(table, f"{table}.")})"""
    return statement, parameters
