"""Unreferenced images, such as those of a batch that was killed before its rows were written."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import cannot_write
from ..pairstore import PairStore

_NAME = re.compile(r"[0-9a-f]{2}/(?:[0-9a-f]{32}\.(?:png|jpg|webp)|\.[0-9a-f]{32}\.(?:png|jpg|webp)\.\d+\.tmp)")
MIN_AGE = 3600.0  # seconds: an image is written, or touched, before its row, so a younger one may be referenced soon


def unreferenced_images(store: PairStore) -> list[tuple[Path, int]]:
    """Image files that no row refers to and that are older than MIN_AGE, with their sizes, sorted by name."""
    store.ingest()
    referenced = {path for (path,) in store.rows("select path from image_files")}
    latest = time.time() - MIN_AGE
    unreferenced = []
    for path in _files(store.path / "images"):
        status = path.stat()
        if status.st_mtime < latest and path.relative_to(store.path).as_posix() not in referenced:
            unreferenced.append((path, status.st_size))
    return unreferenced


def remove(files: list[tuple[Path, int]]) -> None:
    for path, _ in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error


def _files(folder: Path) -> Iterator[Path]:
    """Files with the names of images, or of images being written; any other file is not ours."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where) / name
            if _NAME.fullmatch(path.relative_to(folder).as_posix()):
                yield path
