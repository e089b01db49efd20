"""Rows of a source on their way to records, and the condition that chooses among them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from ...core.errors import UsageError
from ..condition import condition
from ..query import CLOSED, first_lines


@dataclass(frozen=True)
class Batch:
    name: str
    """Of the file, for messages."""
    first_row: int
    table: pa.Table
    root: Path | None = None
    """Folder below which paths in the rows may be opened; None where they are never opened."""

    def where(self, row: int) -> str:
        return f"{self.name}, row {self.first_row + row}"


def selected(batches: Iterator[Batch], text: str | None) -> Iterator[tuple[Batch, list[int]]]:
    """Each batch with the rows that a condition holds for; no file and no Python variable can be read by it."""
    if text is None:
        for batch in batches:
            yield batch, list(range(batch.table.num_rows))
        return
    where = condition(text)
    connection = duckdb.connect(config=CLOSED)
    try:
        connection.execute("set lock_configuration = true")
        for batch in batches:
            yield batch, _matching(connection, batch, text, where)
    finally:
        connection.close()


def _matching(connection: duckdb.DuckDBPyConnection, batch: Batch, text: str, where: str) -> list[int]:
    plain = [field.name for field in batch.table.schema if not _holds_bytes(field.type)]
    numbers = pa.array(range(batch.table.num_rows), pa.int64())
    rows = batch.table.select(plain).append_column(" row", numbers)  # no column of a source begins with a space
    connection.register("batch", rows)
    try:
        found = connection.execute(f'select " row" from batch where {where}')
        return sorted(number for (number,) in found.fetchall())
    except duckdb.Error as error:
        raise UsageError(
            f"--where {text!r} cannot be used: {first_lines(error)}; the columns are {', '.join(plain)}"
        ) from error
    finally:
        connection.unregister("batch")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
