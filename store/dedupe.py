"""Anti-join new rows against the store in bulk, so that nothing is written twice."""

from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

from ..core.errors import UsageError
from . import journal
from .connection import table_with_ids


def new_rows(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """The rows whose key is not in the store's table."""
    same = " and ".join(f"f.{column} = t.{column}" for column in key)
    connection.register("fresh", rows)
    try:
        return in_schema(connection, table, f"select f.* from fresh f anti join {table} t on {same}")
    finally:
        connection.unregister("fresh")


def in_schema(
    connection: duckdb.DuckDBPyConnection, table: str, query: str, parameters: Mapping[str, object] | None = None
) -> pa.Table:
    """The result of a query as rows of the table, as the journal stores them."""
    return table_with_ids(connection, query, parameters).cast(journal.TABLES[table])


def count_conflicts(connection: duckdb.DuckDBPyConnection, labels: pa.Table) -> int:
    """How many of the labels have another choice than the store's current label of the same pair and labeler."""
    connection.register("fresh", labels)
    try:
        ((n,),) = connection.execute(
            "select count(*) from fresh f join current_labels l using (pair_id, labeler) where f.choice <> l.choice"
        ).fetchall()
    finally:
        connection.unregister("fresh")
    return n


def refuse_other_labelers(connection: duckdb.DuckDBPyConnection, names: list[str]) -> None:
    """A name means one labeler: imported labels never join those that a scorer made.

    Raises:
        UsageError: if the store has an `ai` or `ensemble` labeler with one of the names.
    """
    taken = connection.execute(
        "select labeler, kind from labelers where kind in ('ai', 'ensemble') and labeler in (select unnest(?)) order by all",
        [names],
    ).fetchall()
    if taken:
        labeler, kind = taken[0]
        raise UsageError(
            f"the store has a labeler {labeler!r} of kind {kind}, and imported labels cannot be added to it; "
            "give --labeler another name"
        )
