"""WebDataset shards: tar files with KEY.chosen.jpg, KEY.rejected.jpg and KEY.json of a pair next to each other."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ...core.errors import PrefloopError
from .batches import Batch
from .json_rows import as_table

_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
_MEMBER_BYTES = 256_000_000
_ROWS = 256


def read_shards(paths: Sequence[Path]) -> Iterator[Batch]:
    for path in paths:
        first, samples = 1, _samples(path)
        while rows := list(islice(samples, _ROWS)):
            yield Batch(path.name, first, as_table(rows, path))
            first += len(rows)


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with tarfile.open(path, "r|*") as shard:
            files = ((*_split(member.name), member) for member in shard if member.isfile())
            for _, members in groupby(files, key=lambda file: file[0]):
                row: dict[str, Any] = {}
                for _, extension, member in members:
                    file = shard.extractfile(member)
                    if file is not None and member.size <= _MEMBER_BYTES:
                        row |= _columns(extension, file.read())
                yield row
    except (tarfile.TarError, OSError) as error:
        raise PrefloopError(f"{path} cannot be read: {error}; download it again") from error


def _split(name: str) -> tuple[str, str]:
    """Key and extension: the file's name up to its first dot, and the part after it."""
    folder, _, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}/{key}", extension.lower()


def _columns(extension: str, data: bytes) -> dict[str, Any]:
    name, _, suffix = extension.rpartition(".")
    try:
        if suffix == "json":
            parsed = json.loads(data)
            return parsed if isinstance(parsed, dict) else {}
        if suffix == "txt":
            return {name or "prompt": data.decode()}
    except ValueError:  # its prompt is missing then, and the pair is excluded for that
        return {}
    return {name: data} if suffix in _EXTENSIONS and name else {}
