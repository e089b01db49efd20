"""Batches of a source's rows, and the condition that selects among them."""

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
    """The file's name, for messages."""
    first_row: int
    table: pa.Table
    root: Path | None = None
    """Folder below which paths in the rows may be opened; None if they are never opened."""

    def where(self, row: int) -> str:
        return f"{self.name}, row {self.first_row + row}"


def select_rows(batches: Iterator[Batch], text: str | None) -> Iterator[tuple[Batch, list[int]]]:
    """Each batch with the numbers of the rows that meet a condition, which cannot read files or Python variables."""
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
    rows = batch.table.select(plain).append_column(" row", numbers)  # a column of a source never begins with a space
    connection.register("batch", rows)
    try:
        matching = connection.execute(f'select " row" from batch where {where}')
        return sorted(number for (number,) in matching.fetchall())
    except duckdb.Error as error:
        raise UsageError(
            f"--where {text!r} cannot be used: {first_lines(error)}; the columns are {', '.join(plain)}"
        ) from error
    finally:
        connection.unregister("batch")


def _holds_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return any(_holds_bytes(type_.field(number).type) for number in range(type_.num_fields))
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)
