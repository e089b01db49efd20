"""Batches that are halved where memory runs out."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store import PrefloopError
from .scorers.own_code import as_floats


class WithinMemory:
    """Calls a scorer on as much of a batch as memory holds. What did fit is kept for the batches that follow."""

    def __init__(self, scorer: str) -> None:
        self.scorer = scorer
        self.most: int | None = None
        """Rows at once; None until memory has run out."""

    def __call__(self, function: Callable[..., Any], *columns: Sequence[Any]) -> NDArray[np.float32]:
        """The function's rows for those of the columns, which are equally long.

        Raises:
            PrefloopError: where memory runs out for a single row.
        """
        found, at, end = [], 0, len(columns[0])
        while at < end:
            size = min(self.most or end, end - at)
            try:
                found.append(as_floats(function(*(column[at : at + size] for column in columns))))
                at += size
                continue
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if size == 1:
                    raise PrefloopError(
                        f"memory runs out when {self.scorer} scores one image; use a smaller model, --dtype bfloat16 "
                        "or --device cpu"
                    ) from error
            # outside of the except block, which keeps what was allocated alive
            self.most = size // 2
            print(f"memory ran out; scoring {self.most} at a time", file=sys.stderr)
            if "torch" in sys.modules:
                sys.modules["torch"].cuda.empty_cache()
        return np.concatenate(found)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "allocate memory" in str(error)
