"""Pictures that no row mentions, such as those of a batch that was killed before its rows were written."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import cannot_write
from ..pairstore import PairStore

_NAME = re.compile(r"[0-9a-f]{2}/(?:[0-9a-f]{32}\.(?:png|jpg|webp)|\.[0-9a-f]{32}\.(?:png|jpg|webp)\.\d+\.tmp)")
MIN_AGE = 3600.0  # seconds: a picture is written, or touched, before its row; younger ones may be mentioned soon


def unmentioned(store: PairStore) -> list[tuple[Path, int]]:
    """The files and their sizes, in the order of their names."""
    store.ingest()
    mentioned = {path for (path,) in store.rows("select path from image_files")}
    before = time.time() - MIN_AGE
    found = []
    for path in _files(store.path / "images"):
        status = path.stat()
        if status.st_mtime < before and path.relative_to(store.path).as_posix() not in mentioned:
            found.append((path, status.st_size))
    return found


def remove(files: list[tuple[Path, int]]) -> None:
    for path, _ in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error


def _files(folder: Path) -> Iterator[Path]:
    """Files by the names that images have, or had while they were written; whatever else is there is somebody else's."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where) / name
            if _NAME.fullmatch(path.relative_to(folder).as_posix()):
                yield path
