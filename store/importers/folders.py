"""Two folders of pictures with equal names, the preferred ones and the others, and a caption file beside each."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from .batches import Batch

SIDES = (("chosen", "rejected"), ("winner", "loser"))
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_ROWS = 1024


def sides(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the preferred pictures and of the others; None where there are no such folders."""
    for chosen, rejected in SIDES:
        if (folder / chosen).is_dir() and (folder / rejected).is_dir():
            return folder / chosen, folder / rejected
    return None


def read_folders(folder: Path, chosen: Path, rejected: Path) -> Iterator[Batch]:
    """A row for each name that is in either folder; what is missing of it is null."""
    root = folder.resolve()
    better, worse = _pictures(chosen), _pictures(rejected)
    every = sorted(better | worse)
    for first in range(0, len(every), _ROWS):
        names = every[first : first + _ROWS]
        table = pa.table(
            {
                "name": names,
                "prompt": pa.array([_caption(root, name, chosen, rejected) for name in names], pa.string()),
                "chosen": pa.array([better.get(name) for name in names], pa.string()),
                "rejected": pa.array([worse.get(name) for name in names], pa.string()),
            }
        )
        yield Batch(folder.name, first + 1, table, root)


def _pictures(folder: Path) -> dict[str, str]:
    """Name without extension → path below the data set's folder."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _PICTURES and path.name[0] != ".")
    return {path.stem: f"{folder.name}/{path.name}" for path in files}


def _caption(root: Path, name: str, *folders: Path) -> str | None:
    for folder in folders:
        path = (folder / f"{name}.txt").resolve()
        if path.is_file() and path.is_relative_to(root):
            try:
                return path.read_text("utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError:
                return None
    return None
