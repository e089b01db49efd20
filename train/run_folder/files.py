"""Write files of a run such that they are complete on disk, with the permissions that `open` would give them."""

import os
from pathlib import Path

from ...core.errors import cannot_write
from ...core.files import sync_folder


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file and sync it to disk; an earlier file of that name stays until the new one is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, len(data)) from error


def sync_file(path: Path) -> None:
    """Sync a file to disk, if it exists."""
    if path.exists():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def follow_umask(folder: Path) -> None:
    """Give the files below a folder the mode that `open` would: some libraries write files only their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
