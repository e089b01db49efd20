"""Checkpoints that are whole or not there: temporary folder, fsync, manifest, rename; then the old ones go."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..store import IntegrityError
from ..store.errors import cannot_write, is_full
from ..store.journal import sync_folder

MANIFEST = "MANIFEST.json"
_PREFIX = "checkpoint-"


def save_checkpoint(output: Path, step: int, about: dict, write: Callable[[Path], None], keep: int) -> Path:
    """Write `checkpoint-STEP` with whatever `write` puts into a folder, and prune older ones.

    Args:
        about: what the manifest says beside files and step; JSON.
        keep: how many valid checkpoints stay.
    """
    final = output / f"{_PREFIX}{step}"
    temporary = output / f".{_PREFIX}{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    files = {}
    try:
        temporary.mkdir(parents=True)
        write(temporary)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or is_full(error):  # torch and safetensors have errors of their own
            raise cannot_write(final, error) from error
        raise
    for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        files[path.relative_to(temporary).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = temporary / MANIFEST
    with open(manifest, "w") as file:
        json.dump({"step": step, "files": files} | about, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for folder in {p.parent for p in temporary.rglob("*")}:
        sync_folder(folder)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    sync_folder(output)
    valid = [path for path in _newest_first(output) if (path / MANIFEST).exists()]
    for path in valid[keep:]:
        shutil.rmtree(path)
    return final


def read_manifest(checkpoint: Path) -> dict:
    """The manifest of a checkpoint all of whose files are as they were written.

    Raises:
        IntegrityError: where one is missing or has changed.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(f"{checkpoint} has no readable {MANIFEST}") from error
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise IntegrityError(f"{path} is missing or has changed since it was written")
    return manifest


def latest_checkpoint(output: Path) -> tuple[Path, dict] | None:
    """The newest checkpoint that verifies, with its manifest; damaged ones are skipped with a warning."""
    for left_over in output.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    for path in _newest_first(output):
        try:
            return path, read_manifest(path)
        except IntegrityError as error:
            print(f"skipping a damaged checkpoint: {error}", file=sys.stderr)
    return None


def _newest_first(output: Path) -> list[Path]:
    found = [path for path in output.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)), reverse=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
