"""Locks between processes: held by an open file, let go by the kernel when the process ends in whatever way."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import BusyError, PrefloopError, cannot_write


@contextmanager
def locked(path: Path, what: str, *, shared: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file for the length of the block.

    Args:
        what: the thing that is locked, for the message.
        shared: any number of shared holders, or one that is not shared.
        wait: seconds to try before giving up.

    Raises:
        BusyError: naming the process that holds it.
    """
    deadline = time.monotonic() + wait
    descriptor = _opened(path)
    if descriptor is None:
        yield
        return
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BusyError(f"{what} is in use by {_holder(descriptor)}; wait for it, or end it") from None
                time.sleep(0.02)
        if not shared:
            _note(descriptor, str(os.getpid()).encode())
        try:
            yield
        finally:
            if not shared:
                _note(descriptor, b"")
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    """The lock file; None where there is none and none can be made, on read-only media: nobody writes there."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise cannot_write(path, error) from error
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough to be locked
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PrefloopError(f"cannot open {path}: {error.strerror}") from error


def _note(descriptor: int, holder: bytes) -> None:
    """Who holds the lock. A courtesy: on a full disk, or one that cannot be written, the lock holds without it."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder, 0)


def _holder(descriptor: int) -> str:
    recorded = os.pread(descriptor, 20, 0).decode(errors="replace")
    return f"process {recorded}" if recorded.isdigit() else "another process"
