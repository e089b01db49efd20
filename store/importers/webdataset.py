"""WebDataset shards: tar files in which a pair is KEY.chosen.jpg, KEY.rejected.jpg and KEY.json, next to each other."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ...core.errors import PrefloopError
from .batches import Batch
from .json_rows import as_table

_PICTURES = ("png", "jpg", "jpeg", "webp")
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
                for _, ending, member in members:
                    file = shard.extractfile(member)
                    if file is not None and member.size <= _MEMBER_BYTES:
                        row |= _columns(ending, file.read())
                yield row
    except (tarfile.TarError, OSError) as error:
        raise PrefloopError(f"{path} cannot be read: {error}; fetch it again") from error


def _split(name: str) -> tuple[str, str]:
    """Key and ending: the file's name up to its first dot, and from there."""
    folder, _, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return f"{folder}/{key}", ending.lower()


def _columns(ending: str, data: bytes) -> dict[str, Any]:
    name, _, kind = ending.rpartition(".")
    try:
        if kind == "json":
            found = json.loads(data)
            return found if isinstance(found, dict) else {}
        if kind == "txt":
            return {name or "prompt": data.decode()}
    except ValueError:  # its prompt is missing then, and the pair is left out for that
        return {}
    return {name: data} if kind in _PICTURES and name else {}
