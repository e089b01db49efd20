"""Two folders, of preferred and of other images, paired by file name, with a caption file beside each."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from .batches import Batch

FOLDER_NAMES = (("chosen", "rejected"), ("winner", "loser"))
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
_ROWS = 1024


class FolderPair(NamedTuple):
    """What two folders hold under one name; images as paths below the dataset's folder."""

    name: str
    prompt: str | None
    chosen: str | None
    rejected: str | None


def image_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the preferred and of the other images; None if there are no such folders."""
    for chosen, rejected in FOLDER_NAMES:
        if (folder / chosen).is_dir() and (folder / rejected).is_dir():
            return folder / chosen, folder / rejected
    return None


def read_folders(folder: Path, chosen: Path, rejected: Path) -> Iterator[Batch]:
    """A row for each name in either folder; what it lacks is null."""
    root = folder.resolve()
    first, second = ({path.stem: f"{side.name}/{path.name}" for path in images(side)} for side in (chosen, rejected))
    pairs = (
        FolderPair(
            name, caption(root, [chosen / f"{name}.txt", rejected / f"{name}.txt"]), first.get(name), second.get(name)
        )
        for name in sorted(first | second)
    )
    return as_batches(folder.name, root, pairs)


def as_batches(name: str, root: Path, pairs: Iterable[FolderPair]) -> Iterator[Batch]:
    first, remaining = 1, iter(pairs)
    while rows := list(islice(remaining, _ROWS)):
        columns = zip(FolderPair._fields, zip(*rows, strict=True), strict=True)
        yield Batch(name, first, pa.table({field: pa.array(column, pa.string()) for field, column in columns}), root)
        first += len(rows)


def images(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder in order, without hidden ones."""
    found = sorted(folder.rglob("*") if recursive else folder.iterdir())
    return [path for path in found if path.suffix.lower() in _EXTENSIONS and path.name[0] != "."]


def caption(root: Path, files: Sequence[Path]) -> str | None:
    """The text of the first file that exists below the root; None if there is none or it is not UTF-8."""
    for file in files:
        path = file.resolve()
        if path.is_file() and path.is_relative_to(root):
            try:
                return path.read_bytes().decode("utf-8-sig").rstrip("\r\n")  # read_text would change line breaks
            except UnicodeDecodeError:
                return None
    return None
