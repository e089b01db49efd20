"""A lazy sequence over an Arrow table: rows become objects on access."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa

T = TypeVar("T")
_AT_ONCE = 4096  # rows


class LazyRows(Sequence[T], Generic[T]):
    """A sequence with an object for each row; ids are 16 bytes.

    Args:
        make: builds a row's object from the values of its columns, in order; called on every access.
    """

    def __init__(self, table: pa.Table, make: Callable[..., T]) -> None:
        self.table, self._make = _plain(table), make

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> "LazyRows[T]": ...
    def __getitem__(self, at: "int | slice") -> "T | LazyRows[T]":
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1:
                return LazyRows(self.table.slice(start, max(0, stop - start)), self._make)
            return self.select(range(start, stop, step))
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {len(self)}")
        at %= len(self)
        return self._make(*(column[at].as_py() for column in self.table.columns))

    def __iter__(self) -> Iterator[T]:
        for first in range(0, len(self), _AT_ONCE):
            rows = self.table.slice(first, _AT_ONCE)
            yield from map(self._make, *(column.to_pylist() for column in rows.columns))

    def __add__(self, other: "LazyRows[T]") -> "LazyRows[T]":
        return LazyRows(pa.concat_tables([self.table, other.table]), self._make)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyRows) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]  # unhashable, as a list is

    def select(self, rows: Iterable[int]) -> "LazyRows[T]":
        """The rows with these numbers, in this order."""
        return LazyRows(self.table.take(pa.array(rows, pa.int64())), self._make)


def _plain(table: pa.Table) -> pa.Table:
    """The table in one chunk, with ids as plain bytes, so that accessing a row is fast."""
    columns: list[Any] = []
    for column in table.combine_chunks().columns:
        storage = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in column.chunks]
        type_ = column.type.storage_type if isinstance(column.type, pa.BaseExtensionType) else column.type
        columns.append(pa.chunked_array(storage, type_))
    return pa.table(columns, names=table.schema.names)
