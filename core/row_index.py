"""Where the row of an id lies among the files of a cache, for millions of ids: 24 bytes each, and no object."""

import numpy as np
from numpy.typing import NDArray

from .id_columns import Keys


class RowIndex:
    """File and row of each id. Of an id that is in several files, the file that was added last counts."""

    def __init__(self) -> None:
        self._files: dict[str, Keys] = {}
        self._sorted: tuple[Keys, NDArray[np.int32], NDArray[np.int32]] | None = None  # keys, file numbers, rows
        self.names: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def add(self, name: str, keys: Keys) -> None:
        """Add a file, or add it again, as the last one."""
        again = self._files.pop(name, None) is not None
        self._files[name] = keys
        self._sorted = None if again or self._sorted is None else self._merged(*self._sorted, name, keys)

    def remove(self, name: str) -> None:
        if self._files.pop(name, None) is not None:
            self._sorted = None

    def files(self) -> dict[str, Keys]:
        """The keys of each file, in the order of its rows."""
        return self._files

    def find(self, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Number of the file in `names`, -1 if the id is in none, and row, each (N,)."""
        known, files, rows = self._sorted or self._sort()
        if not len(known):
            return np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.int32)
        at = np.maximum(np.searchsorted(known, keys, side="right") - 1, 0)
        return np.where(known[at] == keys, files[at], np.int32(-1)), rows[at]

    def _merged(
        self, known: Keys, files: NDArray[np.int32], rows: NDArray[np.int32], name: str, keys: Keys
    ) -> tuple[Keys, NDArray[np.int32], NDArray[np.int32]]:
        """What is sorted, with a file at its end: a writer that adds file after file must not sort all of them each time."""
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        at = np.searchsorted(known, keys, side="right")  # behind an equal id of an earlier file
        self.names.append(name)
        files = np.insert(files, at, np.int32(len(self.names) - 1))
        return np.insert(known, at, keys), files, np.insert(rows, at, order.astype(np.int32))

    def _sort(self) -> tuple[Keys, NDArray[np.int32], NDArray[np.int32]]:
        self.names = list(self._files)
        parts = list(self._files.values())
        keys = np.concatenate(parts) if parts else np.empty(0, "S16")
        counts = [len(part) for part in parts]
        files = np.repeat(np.arange(len(parts), dtype=np.int32), counts)
        rows = np.concatenate([np.arange(count, dtype=np.int32) for count in counts] or [np.empty(0, np.int32)])
        order = np.argsort(keys, kind="stable")  # the last of equal ids is that of the last file
        self._sorted = keys[order], files[order], rows[order]
        return self._sorted
