"""Rows of a table as objects that are made when they are asked for: a million cost the table's memory, and no time before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa

T = TypeVar("T")
_AT_ONCE = 4096  # rows


class LazyRows(Sequence[T], Generic[T]):
    """Of each row an object, from the values of its columns in their order; ids come as 16 bytes.

    Args:
        make: from a row's values to its object; called anew whenever the row is asked for.
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
            return self.taken(range(start, stop, step))
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {len(self)}")
        at %= len(self)
        return self._make(*(column[at].as_py() for column in self.table.columns))

    def __iter__(self) -> Iterator[T]:
        for first in range(0, len(self), _AT_ONCE):
            some = self.table.slice(first, _AT_ONCE)
            yield from map(self._make, *(column.to_pylist() for column in some.columns))

    def __add__(self, other: "LazyRows[T]") -> "LazyRows[T]":
        return LazyRows(pa.concat_tables([self.table, other.table]), self._make)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyRows) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def taken(self, rows: Iterable[int]) -> "LazyRows[T]":
        """Those rows, in that order."""
        return LazyRows(self.table.take(pa.array(rows, pa.int64())), self._make)


def _plain(table: pa.Table) -> pa.Table:
    """The table in one piece, with ids as plain bytes: a row is found at once."""
    columns: list[Any] = []
    for column in table.combine_chunks().columns:
        storage = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in column.chunks]
        kind = column.type.storage_type if isinstance(column.type, pa.BaseExtensionType) else column.type
        columns.append(pa.chunked_array(storage, kind))
    return pa.table(columns, names=table.schema.names)
