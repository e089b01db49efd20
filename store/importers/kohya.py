"""Preference pairs for kohya's sd-scripts (kohya-ss/sd-scripts#1427): folders w and l with the same file names."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .batches import Batch
from .folders import FolderPair, as_batches, caption, images

_CAPTIONS = (".caption", ".txt")


def kohya_folders(path: Path) -> list[Path]:
    """The folder itself or its subfolders, such as 1_name, that hold w and l."""
    candidates = (
        [path, *sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name[0] != ".")]
        if path.is_dir()
        else []
    )
    return [folder for folder in candidates if (folder / "w").is_dir() and (folder / "l").is_dir()]


def read_kohya(path: Path, folders: Sequence[Path]) -> Iterator[Batch]:
    """A row for each file name in either folder; what it lacks is null."""
    root = path.resolve()
    for folder in folders:
        yield from as_batches(folder.name, root, _pairs(path, root, folder))


def _pairs(path: Path, root: Path, folder: Path) -> Iterator[FolderPair]:
    chosen, rejected = (
        {image.name: image.relative_to(path).as_posix() for image in images(folder / side)} for side in ("w", "l")
    )
    for name in sorted(chosen | rejected):
        files = [(folder / side / name).with_suffix(suffix) for side in ("w", "l") for suffix in _CAPTIONS]
        text = caption(root, files)
        prompt = re.split(r"[\r\n]", text)[0].strip() if text else None  # the scripts train on the first line
        yield FolderPair(name, prompt, chosen.get(name), rejected.get(name))
