"""Two folders, of preferred and of other images, paired by file name, with a caption file beside each."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from .batches import Batch

FOLDER_NAMES = (("chosen", "rejected"), ("winner", "loser"))
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
_ROWS = 1024


def image_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the preferred and of the other images; None if there are no such folders."""
    for chosen, rejected in FOLDER_NAMES:
        if (folder / chosen).is_dir() and (folder / rejected).is_dir():
            return folder / chosen, folder / rejected
    return None


def read_folders(folder: Path, chosen: Path, rejected: Path) -> Iterator[Batch]:
    """A row for each name in either folder; what it lacks is null."""
    root = folder.resolve()
    chosen_images, rejected_images = _images(chosen), _images(rejected)
    all_names = sorted(chosen_images | rejected_images)
    for first in range(0, len(all_names), _ROWS):
        names = all_names[first : first + _ROWS]
        table = pa.table(
            {
                "name": names,
                "prompt": pa.array([_caption(root, name, chosen, rejected) for name in names], pa.string()),
                "chosen": pa.array([chosen_images.get(name) for name in names], pa.string()),
                "rejected": pa.array([rejected_images.get(name) for name in names], pa.string()),
            }
        )
        yield Batch(folder.name, first + 1, table, root)


def _images(folder: Path) -> dict[str, str]:
    """Name without extension → path below the dataset's folder."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _EXTENSIONS and path.name[0] != ".")
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
