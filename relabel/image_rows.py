"""The rows of a list of items by their image, for millions of items: 40 bytes each, and no object."""

from collections.abc import Sequence
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..core.id_columns import Keys, as_keys, keys_of


class ImageRows:
    """An image can be in several rows, one for each of its prompts."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """
        Args:
            column: the image's id of each row.
        """
        keys = keys_of(column)
        self._order = np.argsort(keys, kind="stable")  # of equal ids, the first row comes first
        self._sorted = keys[self._order]
        is_first = np.ones(len(keys), bool)
        is_first[1:] = self._sorted[1:] != self._sorted[:-1]
        self.first: NDArray[np.int64] = np.sort(self._order[is_first])
        """The first row of each image, in the order of the rows, (M,)."""
        self.images: Keys = keys[self.first]
        """The id of each image, in the same order, (M,)."""

    def of(self, ids: Sequence[UUID]) -> NDArray[np.int64]:
        """The rows of these images: those of the first, then those of the second, and so on."""
        keys = as_keys(ids)
        start, end = (np.searchsorted(self._sorted, keys, side=side) for side in ("left", "right"))
        return np.concatenate([self._order[at:to] for at, to in zip(start, end, strict=True)] or [self._order[:0]])
