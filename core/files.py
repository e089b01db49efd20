"""A folder that is there whole or not at all: made under a temporary name, on disk, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError, cannot_write


@contextmanager
def atomic_folder(path: Path, n_bytes: int = 0) -> Iterator[Path]:
    """The temporary folder to fill.

    Args:
        n_bytes: what will be written at least; refused at once where the disk has less.

    Raises:
        UsageError: where there is something of that name.
        PrefloopError: where it cannot be written.
    """
    refuse_existing(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _sweep(path)
        temporary.mkdir(parents=True)
        if shutil.disk_usage(temporary).free < n_bytes:
            raise OSError(None, "No space left on device")
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


_MARK = '<meta name="generator" content="prefloop">'


def refuse_report_over_others(folder: Path, page: str, *others: str) -> None:
    """Check a folder for a report, in which an earlier report may lie.

    Args:
        page: name of the report's page, which is written first and bears a mark.
        others: names of the report's other files.

    Raises:
        UsageError: where it is a store or a file, or a file of somebody else would be written over.
    """
    if "\0" in str(folder):
        raise UsageError(f"no path can be {str(folder)!r}: it holds a NUL character")
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
            raise UsageError(f"{folder / name} is not of a report that prefloop wrote; name another folder")


def refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise UsageError(f"{path} exists; name another folder, or remove it first")


def _sweep(path: Path) -> None:
    """Remove what a killed process left of the same folder."""
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):
        pid = left_over.name.split(".")[-2]
        if pid.isdigit() and not _runs(int(pid)):
            shutil.rmtree(left_over)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
