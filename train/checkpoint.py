"""Atomic checkpoints: temporary folder, fsync, manifest, rename; then old ones are removed."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..core.errors import cannot_write, is_full
from ..core.files import sync_folder
from ..models.lineage import MANIFEST
from ..store import IntegrityError
from .run_folder.files import follow_umask

_PREFIX = "checkpoint-"


def save_checkpoint(
    output: Path,
    step: int,
    about: dict,
    write: Callable[[Path], None],
    keep: int,
    n_bytes: int = 0,
    mask: int | None = None,
) -> Path:
    """Write `checkpoint-STEP` with whatever `write` puts into a folder, and prune older ones.

    Args:
        about: more entries of the manifest, beside files and step; JSON.
        keep: number of valid checkpoints to keep.
        n_bytes: lower bound of its size; refused at once if the disk has less room.
        mask: the process's umask, for a thread that cannot read it.

    Raises:
        PrefloopError: if it cannot be written; earlier checkpoints stay.
    """
    final = output / f"{_PREFIX}{step}"
    temporary = output / f".{_PREFIX}{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        if shutil.disk_usage(temporary).free < n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(temporary)
        _seal(temporary, {"step": step} | about, mask)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync_folder(output)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cause = write_error(error)
        if cause is None:
            raise
        raise cannot_write(final, cause, n_bytes or None) from error
    valid = [path for path in newest_first(output) if (path / MANIFEST).exists()]
    for path in valid[keep:]:
        shutil.rmtree(path)
    return final


def _seal(folder: Path, about: dict, mask: int | None) -> None:
    """Write the manifest, and fsync it with all files and folders."""
    follow_umask(folder, mask)
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    with open(folder / MANIFEST, "w") as file:
        json.dump(about | {"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for subfolder in {path.parent for path in folder.rglob("*")}:
        sync_folder(subfolder)


def write_error(error: BaseException) -> Exception | None:
    """The system's error behind a failed write, also if torch or safetensors raised their own; None for other errors."""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
    return error if isinstance(error, Exception) and is_full(error) else None


def read_manifest(checkpoint: Path) -> dict:
    """The manifest of a checkpoint, once all its files are verified.

    Raises:
        IntegrityError: if a file is missing or has changed.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = manifest["files"]
        named = list(files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{checkpoint} has no readable {MANIFEST}") from error
    for name, expected in named:
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            raise IntegrityError(f"{path} is missing or has changed since it was written")
    return manifest


def latest_checkpoint(output: Path) -> tuple[Path, dict] | None:
    """The newest valid checkpoint and its manifest; damaged ones are skipped with a warning."""
    for unfinished in output.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for path in newest_first(output):
        try:
            return path, read_manifest(path)
        except IntegrityError as error:
            print(f"skipping a damaged checkpoint: {error}", file=sys.stderr)
    return None


def newest_first(output: Path) -> list[Path]:
    """Folders of checkpoints, valid or not."""
    folders = [path for path in output.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(folders, key=steps_of, reverse=True)


def steps_of(checkpoint: Path) -> int:
    """The optimizer steps after which it was written, by its name."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
