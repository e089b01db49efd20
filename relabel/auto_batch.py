"""Halve a batch when memory runs out."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store import PrefloopError
from .scorers.own_code import as_floats


class AutoBatch:
    """Calls a scorer with as many rows at once as memory holds, and remembers that number for later batches.

    Unlike accelerate's find_executable_batch_size it keeps the rows that are done, halves on numpy's MemoryError too,
    and collects garbage only when memory has run out, not before every call.
    """

    def __init__(self, scorer: str) -> None:
        self.scorer = scorer
        self.max_rows: int | None = None
        """Rows at once; None until memory has run out."""

    def __call__(self, function: Callable[..., Any], *columns: Sequence[Any]) -> NDArray[np.float32]:
        """The function's rows for those of the columns, which have the same length.

        Raises:
            PrefloopError: if memory runs out for a single row.
        """
        results, start, end = [], 0, len(columns[0])
        while start < end:
            size = min(self.max_rows or end, end - start)
            try:
                results.append(as_floats(function(*(column[start : start + size] for column in columns))))
                start += size
                continue
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if size == 1:
                    raise PrefloopError(
                        f"memory runs out when {self.scorer} scores one image; use a smaller model, --dtype bfloat16 "
                        "or --device cpu"
                    ) from error
            # outside the except block, which keeps what was allocated alive
            self.max_rows = size // 2
            print(f"memory ran out; scoring {self.max_rows} at a time", file=sys.stderr)
            if "torch" in sys.modules:
                sys.modules["torch"].cuda.empty_cache()
        return np.concatenate(results)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "allocate memory" in str(error)
