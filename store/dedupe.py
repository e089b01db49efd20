"""Which of some rows the store lacks; asked of many rows at once, so that nothing is written twice."""

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from ..core.errors import UsageError
from . import journal
from .connection import table_with_ids


def lacking(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """The rows that the store's table has none of with the same key."""
    same = " and ".join(f"f.{column} = t.{column}" for column in key)
    connection.register("fresh", rows)
    try:
        return in_schema(connection, table, f"select f.* from fresh f anti join {table} t on {same}")
    finally:
        connection.unregister("fresh")


def in_schema(connection: duckdb.DuckDBPyConnection, table: str, query: str, **parameters: object) -> pa.Table:
    """The answer as rows of the table, fit for the journal."""
    return table_with_ids(connection, query, parameters or None).cast(journal.TABLES[table])


def relabelled(connection: duckdb.DuckDBPyConnection, labels: pa.Table) -> int:
    """How many of the labels differ from one that the store has of the same pair and labeler."""
    connection.register("fresh", labels)
    try:
        ((n,),) = connection.execute(
            "select count(*) from fresh f join current_labels l using (pair_id, labeler) where f.choice <> l.choice"
        ).fetchall()
    finally:
        connection.unregister("fresh")
    return n


def refuse_other_labelers(connection: duckdb.DuckDBPyConnection, names: list[str]) -> None:
    """A name means one labeler: labels from outside never join those that a scorer made.

    Raises:
        UsageError: where the store has an `ai` or `ensemble` labeler of one of the names.
    """
    found = connection.execute(
        "select labeler, kind from labelers where kind in ('ai', 'ensemble') and labeler in (select unnest(?)) order by all",
        [names],
    ).fetchall()
    if found:
        labeler, kind = found[0]
        raise UsageError(
            f"the labeler {labeler!r} is there, of kind {kind}, and labels from outside are not its own; "
            "give --labeler another name"
        )
