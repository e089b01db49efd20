"""Atomic files and folders: written under a temporary name, synced to disk, then renamed. They exist whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from .errors import UsageError, cannot_write


@contextmanager
def atomic_file(
    path: Path, n_bytes: int | None = None, *, sync_name: bool = True, make_parent: bool = False
) -> Iterator[BufferedRandom]:
    """Yield an open file that gets its name when the block ends; until then an earlier file of that name stays.

    Args:
        n_bytes: size for the error message, if it is known.
        sync_name: whether the name is on disk too when the block ends. False if the caller syncs the folder later, once
            for many files, or can do without the file after a power cut.
        make_parent: create the folder it lies in.

    Raises:
        WriteError: if it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if make_parent:
            path.parent.mkdir(exist_ok=True)
        with open(temporary, "wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync_name:
            sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error, n_bytes) from error
        raise


def write_atomic(path: Path, data: bytes | memoryview, *, sync_name: bool = True, make_parent: bool = False) -> None:
    """Write a file that is whole and on disk when this returns; arguments as for `atomic_file`."""
    with atomic_file(path, len(data), sync_name=sync_name, make_parent=make_parent) as file:
        file.write(data)


@contextmanager
def atomic_folder(path: Path, n_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary folder to fill; it gets its name, synced to disk with all it holds, when the block ends.

    Args:
        n_bytes: least number of bytes that will be written; refused at once if the disk has less free.

    Raises:
        UsageError: if something of that name exists.
        WriteError: if it cannot be written; nothing is left behind.
    """
    refuse_existing(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _sweep(path)
        temporary.mkdir(parents=True)
        if shutil.disk_usage(temporary).free < n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
            sync_folder(Path(folder))
        os.rename(temporary, path)
        sync_folder(path.absolute().parent)
    except OSError as error:
        raise cannot_write(path, error, n_bytes or None) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def user_cache() -> Path:
    """The folder for what can be computed or downloaded again; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prefloop"


_MARK = '<meta name="generator" content="prefloop">'


def refuse_report_over_others(folder: Path, page: str, *others: str) -> None:
    """Check the folder for a report; it may hold an earlier report.

    Args:
        page: name of the report's page, which is written first and carries a mark.
        others: names of the report's other files.

    Raises:
        UsageError: if it is a store or a file, or a file that prefloop did not write would be overwritten.
    """
    if "\0" in str(folder):
        raise UsageError(f"a path cannot hold a NUL character, got {str(folder)!r}")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder")
    if (folder / "journal").is_dir():
        raise UsageError(f"{folder} is a store; name another folder")
    path = folder / page
    try:
        if path.is_file() and _MARK in path.read_text(errors="replace"):
            return
    except OSError as error:
        raise cannot_write(folder, error) from error
    for name in (page, *others):
        if os.path.lexists(folder / name):
            raise UsageError(f"{folder / name} is not part of a report that prefloop wrote; name another folder")


def refuse_existing(path: Path) -> None:
    """
    Raises:
        UsageError: if something of that name exists.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path} exists; name another folder, or remove it first")


def refuse_unwritable(folder: Path) -> None:
    """Check a folder, which may not exist yet, before anything slow is done for what will be written there.

    Raises:
        WriteError: if no file can be created in it, or in the nearest folder above it that exists.
    """
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error


def _sweep(path: Path) -> None:
    """Remove temporary folders for the same path that killed processes left behind."""
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):
        pid = left_over.name.split(".")[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(left_over)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
