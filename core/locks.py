"""Locks between processes: held through an open file, and released by the kernel however the process ends."""

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
    """Hold the lock file for the duration of the block.

    Args:
        what: what is locked, for the error message.
        shared: allow other shared holders; a lock that is not shared allows no others.
        wait: seconds to try before giving up.

    Raises:
        BusyError: naming the process that holds it.
    """
    deadline = time.monotonic() + wait
    descriptor = _open(path)
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
                    raise BusyError(
                        f"{what} is in use by {_holder(descriptor)}; wait for it to finish, or stop it"
                    ) from None
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


def _open(path: Path) -> int | None:
    """The lock file; None if it does not exist and the medium is read-only, so that nobody writes."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise cannot_write(path, error) from error
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough for a lock
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PrefloopError(f"cannot open {path}: {error.strerror}") from error


def _note(descriptor: int, holder: bytes) -> None:
    """Write down who holds the lock. Optional: the lock also holds without it, on a full or read-only disk."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder, 0)


def _holder(descriptor: int) -> str:
    recorded = os.pread(descriptor, 20, 0).decode(errors="replace")
    return f"process {recorded}" if recorded.isdigit() else "another process"
