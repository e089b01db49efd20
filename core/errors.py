"""The errors of prefloop, each with its exit code. Messages name the thing and the cure."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FULL = (*_NO_SPACE, errno.EFBIG)


class PrefloopError(Exception):
    """The environment failed: files, disk, network."""

    exit_code = 1
    said_elsewhere = False
    """Whether another process of the same training prints it."""


class WriteError(PrefloopError):
    """A file or folder cannot be written: the disk is full, or it is read-only."""


class UsageError(PrefloopError, ValueError):
    """A value that the user gave cannot be used."""

    exit_code = 2


class BadDataError(PrefloopError):
    """More of the data is unreadable than the user allows."""

    exit_code = 3


class BusyError(PrefloopError):
    """Another process holds the store or the run."""

    exit_code = 4


class IntegrityError(PrefloopError):
    """What is on disk is not what was written, or not what a name stands for."""

    exit_code = 5


class NumericalError(PrefloopError):
    """A loss or a gradient is not finite."""

    exit_code = 6


class Interrupted(PrefloopError):
    """A signal ended the run; everything finished so far is kept, and the same command continues it."""

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def cannot_write(path: Path, error: Exception, n_bytes: int | None = None) -> WriteError:
    """The error to raise if a file or folder cannot be written: its path, its size, the reason, and if the disk is full what
    is free."""
    reason = getattr(error, "strerror", None) or why(error, *_FULL) or str(error).strip().split("\n")[0]
    size = "" if n_bytes is None else f" ({n_bytes} bytes)"
    message = f"cannot write {path}{size}: {reason}"
    if getattr(error, "errno", None) in _NO_SPACE or why(error, *_NO_SPACE):
        folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        message += f"; {shutil.disk_usage(folder).free / 1e6:.1f} MB are free there"
    return WriteError(message)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any OSError into the error for a file or folder that cannot be read."""
    try:
        yield
    except OSError as error:
        raise PrefloopError(f"cannot read {error.filename or path}: {error.strerror}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any OSError into the error for a file or folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise cannot_write(Path(error.filename or path), error) from error


def is_full(error: Exception) -> bool:
    """Whether a library's error says that the disk, or the user's quota of it, is full."""
    return why(error, *_FULL) is not None


def why(error: Exception, *numbers: int) -> str | None:
    """The first of the reasons, given by errno, that a library's error names."""
    return next((reason for reason in map(os.strerror, numbers) if reason in str(error)), None)
