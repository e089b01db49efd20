"""Append rows that come in small batches as few parts of the journal."""

import time

import pyarrow as pa

from .pairstore import PairStore

ROWS = 1024
"""Least number of rows of a part, unless its time is over."""
SECONDS = 30.0
"""Longest time that a row waits for others, if batches come: what a kill can cost."""


class PartWriter:
    """Collects rows of one table, and appends them together. The block's end, also by an error, appends what is left."""

    def __init__(self, store: PairStore, table: str, n_rows: int = ROWS, seconds: float = SECONDS) -> None:
        """
        Args:
            n_rows: append once there are this many.
            seconds: append once the first of them is this old.
        """
        self.store, self.table, self.n_rows, self.seconds = store, table, n_rows, seconds
        self._waiting: list[pa.Table] = []
        self._since = 0.0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, rows: pa.Table) -> None:
        """Rows that are added at once go into one part."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(rows)
        n_waiting = sum(batch.num_rows for batch in self._waiting)
        if n_waiting >= self.n_rows or time.monotonic() - self._since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Append what waits; it is on disk when this returns."""
        if self._waiting:
            self.store.append(self.table, pa.concat_tables(self._waiting))
            self._waiting = []
