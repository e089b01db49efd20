"""Locks between processes: held by an open file, let go by the kernel when the process ends in whatever way."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BusyError, PrefloopError


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
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise PrefloopError(f"cannot open {path}: {error.strerror}") from error
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
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            if not shared:
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    recorded = os.pread(descriptor, 20, 0).decode(errors="replace")
    return f"process {recorded}" if recorded.isdigit() else "another process"
