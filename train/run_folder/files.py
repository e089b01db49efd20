"""Sync files of a run to disk, and give them the permissions that `open` would."""

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Sync a file to disk, if it exists."""
    if path.exists():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def current_umask() -> int:
    """The process's mask, which can only be read by setting it for a moment: not while other threads create files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def follow_umask(folder: Path, mask: int | None = None) -> None:
    """Give the files below a folder the mode that `open` would: some libraries write files only their owner can read.

    Args:
        mask: the process's, for a thread that cannot read it.
    """
    mask = current_umask() if mask is None else mask
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
