"""What a scorer's own code gives, as numbers of the right shape; where it fails, one line that names it."""

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import PrefloopError

_NOT_OWN = (str(Path(__file__).parents[2]), str(Path(importlib.__file__).parent))


@contextmanager
def own_code(scorer: Any) -> Iterator[None]:
    """
    Raises:
        PrefloopError: where the code inside fails in any way: the error's kind, its first line, and where it came from.
    """
    try:
        yield
    except PrefloopError:
        raise
    except (Exception, SystemExit) as error:  # anybody's code can raise anything
        raise PrefloopError(f"the scorer {scorer.name} failed: {described(error, type(scorer))}") from error


def described(error: BaseException, kind: type | None = None) -> str:
    """An error in one line, with the last place in the class's own file, or the last outside of prefloop."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) if kind else None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if frame.filename == file]
    own = own or [frame for frame in frames if not frame.filename.startswith(_NOT_OWN)]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    line = (str(error).strip().splitlines() or ["no message"])[0][:200]
    return f"{type(error).__name__}: {line}{place}"


def as_floats(values: Any) -> NDArray[np.float32]:
    """Numbers in float32: whatever numpy reads, tensors of any dtype, on any device and with a gradient too.

    Raises:
        TypeError: where they are not numbers.
    """
    if isinstance(values, (list, tuple)):
        values = [as_floats(value) if hasattr(value, "detach") else value for value in values]
    elif hasattr(values, "detach"):  # torch need not be imported to tell
        values = values.detach().float().cpu().numpy()
    found = np.asarray(values)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"numbers were wanted, got values such as {str(np.ravel(found)[:1].tolist())[:60]}")
    with np.errstate(over="ignore"):  # inf, which is counted as not finite
        return found.astype(np.float32, copy=False)


def as_scores(scorer: Any, values: Any, n: int) -> NDArray[np.float32]:
    """(B,), for a batch of n images."""
    scores = as_floats(values)
    if scores.shape != (n,):
        raise PrefloopError(
            f"{scorer.name} gave scores of shape {scores.shape} for {n} images; score() must give one number for each"
        )
    return scores


def as_embeddings(scorer: Any, values: Any, n: int) -> NDArray[np.float32]:
    """(B, E), for n images or prompts."""
    embeddings = as_floats(values)
    if embeddings.ndim != 2 or len(embeddings) != n:
        raise PrefloopError(
            f"{scorer.name} gave embeddings of shape {embeddings.shape} for {n}; there must be one row for each"
        )
    return embeddings
