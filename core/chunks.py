"""Any number of rows in lists of a few, so that only these are in memory."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` rows each; the last may have fewer."""
    every = iter(rows)
    while chunk := list(islice(every, size)):
        yield chunk
