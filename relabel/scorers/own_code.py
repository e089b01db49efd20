"""Results of a scorer's own code as arrays of the right shape, and its failures as one line that names the scorer."""

import ctypes
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import PrefloopError

_STDOUT, _STDERR = 1, 2  # file descriptors
_NOT_OWN = (str(Path(__file__).parents[2]), str(Path(importlib.__file__).parent))


@contextmanager
def own_code(scorer: Any) -> Iterator[None]:
    """
    Raises:
        PrefloopError: if the code inside fails in any way: the error's type, its first line, and where it was raised.
    """
    try:
        yield
    except PrefloopError:
        raise
    except (Exception, SystemExit) as error:  # foreign code can raise anything
        raise PrefloopError(f"the scorer {_name(scorer)} failed: {describe_error(error, type(scorer))}") from error


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """What a scorer prints goes to stderr, so that stdout has only results; also what its libraries in C and the programs that
    it starts print. For the main thread: it changes sys.stdout, and the process's stdout if that is what sys.stdout is."""
    with _own_stdout_to_stderr() if sys.stdout is sys.__stdout__ else nullcontext(), redirect_stdout(sys.stderr):
        yield


@contextmanager
def _own_stdout_to_stderr() -> Iterator[None]:
    """Let the process's file descriptor of stdout be that of stderr."""
    kept = None
    with suppress(OSError, ValueError):  # a stream that is closed
        _flush()
        kept = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)
    try:
        yield
    finally:
        if kept is not None:
            with suppress(OSError, ValueError):
                _flush()  # what is written later would come with the results
            os.dup2(kept, _STDOUT)
            os.close(kept)


def _flush() -> None:
    """Write what Python's own stdout, and that of C, hold back."""
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
    ctypes.CDLL(None).fflush(None)


def _name(scorer: Any) -> str:
    try:
        return str(scorer.name)
    except Exception:  # a property, which can raise anything
        return type(scorer).__name__


def describe_error(error: BaseException, cls: type | None = None) -> str:
    """An error in one line, with the last line of the traceback in the class's own file, or outside of prefloop."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) if cls else None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if frame.filename == file]
    own = own or [frame for frame in frames if not frame.filename.startswith(_NOT_OWN)]
    location = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    try:
        text = str(error)
    except Exception:  # its own code too
        text = ""
    line = (text.strip().splitlines() or ["no message"])[0][:200]
    return f"{type(error).__name__}: {line}{location}"


def as_floats(values: Any) -> NDArray[np.float32]:
    """float32 numbers from whatever numpy reads, or from tensors of any dtype, on any device, with a gradient too. None in a
    list is nan.

    Raises:
        TypeError: if they are not numbers.
    """
    if isinstance(values, (list, tuple)):
        values = [
            np.nan if value is None else as_floats(value) if hasattr(value, "detach") else value for value in values
        ]
    elif hasattr(values, "detach"):  # a tensor, without importing torch
        if values.is_complex():
            raise TypeError(f"expected real numbers, got a tensor of {values.dtype}")
        values = values.detach().float().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected numbers, got values such as {str(np.ravel(array)[:1].tolist())[:60]}")
    with np.errstate(over="ignore"):  # inf, which is counted as not finite
        return array.astype(np.float32, copy=False)


def as_scores(scorer: Any, values: Any, n: int) -> NDArray[np.float32]:
    """Scores (B,) of a batch of n images."""
    scores = as_floats(values)
    if scores.shape != (n,):
        raise PrefloopError(
            f"{scorer.name} gave scores of shape {scores.shape} for {n} images; score() must give one number for each"
        )
    return scores


def as_columns(scorer: Any, values: Any, n: int, n_columns: int) -> NDArray[np.float32]:
    """Scores of n images with the scorer's further columns (B, columns)."""
    columns = as_floats(values)
    if columns.shape != (n, n_columns):
        raise PrefloopError(
            f"{scorer.name} gave columns of shape {columns.shape} for {n} images; score_columns() must give {n_columns} "
            "numbers for each"
        )
    return columns


def as_embeddings(scorer: Any, values: Any, n: int) -> NDArray[np.float32]:
    """Embeddings (B, E) of n images or prompts."""
    embeddings = as_floats(values)
    if embeddings.ndim != 2 or len(embeddings) != n:
        raise PrefloopError(
            f"{scorer.name} gave embeddings of shape {embeddings.shape} for {n} inputs; there must be one row for each"
        )
    return embeddings
