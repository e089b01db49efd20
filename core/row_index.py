"""Where the row of an id lies among the files of a cache, for millions of ids: 32 bytes each, and no object."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .id_columns import Keys, key_heads, key_order


class _Sorted(NamedTuple):
    keys: Keys
    """Ascending; of equal ones, the last counts."""
    heads: NDArray[np.uint64]
    """`key_heads` of the keys."""
    files: NDArray[np.int32]
    rows: NDArray[np.int32]


class RowIndex:
    """File and row of each id. Of an id that is in several files, the file that was added last counts."""

    def __init__(self) -> None:
        self._files: dict[str, Keys] = {}
        self._sorted: _Sorted | None = None
        self.names: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def add(self, name: str, keys: Keys) -> None:
        """Add a file, or add it again, as the last one."""
        again = self._files.pop(name, None) is not None
        self._files[name] = keys
        self._sorted = None if again or self._sorted is None else self._merged(self._sorted, name, keys)

    def remove(self, name: str) -> None:
        if self._files.pop(name, None) is not None:
            self._sorted = None

    def files(self) -> dict[str, Keys]:
        """The keys of each file, in the order of its rows."""
        return self._files

    def find(self, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Number of the file in `names`, -1 if the id is in none, and row, each (N,)."""
        known = self._sorted or self._sort()
        if not len(known.keys):
            return np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.int32)
        at = _places(known, keys) - 1
        return np.where((at >= 0) & (known.keys[at] == keys), known.files[at], np.int32(-1)), known.rows[at]

    def _merged(self, known: _Sorted, name: str, keys: Keys) -> _Sorted:
        """What is sorted, with a file at its end: a writer that adds file after file must not sort all of them each time."""
        order = key_order(keys)
        keys = keys[order]
        at = _places(known, keys)  # behind an equal id of an earlier file
        self.names.append(name)
        return _Sorted(
            np.insert(known.keys, at, keys),
            np.insert(known.heads, at, key_heads(keys)),
            np.insert(known.files, at, np.int32(len(self.names) - 1)),
            np.insert(known.rows, at, order.astype(np.int32)),
        )

    def _sort(self) -> _Sorted:
        self.names = list(self._files)
        parts = list(self._files.values())
        keys = np.concatenate(parts) if parts else np.empty(0, "S16")
        counts = [len(part) for part in parts]
        files = np.repeat(np.arange(len(parts), dtype=np.int32), counts)
        rows = np.concatenate([np.arange(count, dtype=np.int32) for count in counts] or [np.empty(0, np.int32)])
        order = key_order(keys)
        keys = keys[order]
        self._sorted = _Sorted(keys, key_heads(keys), files[order], rows[order])
        return self._sorted


def _places(known: _Sorted, keys: Keys) -> NDArray[np.intp]:
    """How many of the sorted keys are not above each key, (N,)."""
    if not len(known.keys):
        return np.zeros(len(keys), np.intp)
    heads = key_heads(keys)
    order = np.argsort(heads)  # neighbours are found in the same part of memory
    places = np.empty(len(keys), np.intp)
    places[order] = np.searchsorted(known.heads, heads[order], side="right")
    # those whose first 8 bytes are also in another key
    doubtful = (places > 0) & (known.heads[places - 1] == heads) & (known.keys[places - 1] != keys)
    if doubtful.any():
        places[doubtful] = np.searchsorted(known.keys, keys[doubtful], side="right")
    return places
