"""Embeddings on disk in the store's cache/; deleting them only costs forward passes."""

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ..core.errors import cannot_write
from ..core.files import atomic_file

PART_SIZE = 4096  # embeddings per file
_DIGEST = hashlib.sha256().digest_size


class EmbeddingCache:
    """Embeddings (E,) float32 by id, in parts: memory-mapped files of (id, embedding) rows.

    A part ends with the sha256 of the bytes before it, which is compared when one of its rows is first used, so that
    unused parts are not read. A damaged part is removed, and its images or prompts are embedded again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._new: dict[bytes, NDArray[np.float32]] = {}
        self._parts: dict[Path, NDArray] = {}
        self._verified: set[Path] = set()
        """Parts whose checksum matches."""
        self._location: dict[bytes, tuple[Path, int]] = {}
        """Id → part and row."""
        self._warned = False
        for path in sorted(folder.glob("*.npy")):
            self._read(path)

    def __contains__(self, identity: UUID) -> bool:
        return identity.bytes in self._new or self._find(identity.bytes) is not None

    def get(self, ids: Sequence[UUID]) -> NDArray[np.float32]:
        """Embeddings (B, E) of ids in the cache; KeyError for any other."""
        return np.stack([self._get(identity.bytes) for identity in ids])

    def add(self, ids: Sequence[UUID], embeddings: NDArray[np.float32]) -> None:
        self._new.update(zip((identity.bytes for identity in ids), embeddings, strict=True))
        if len(self._new) >= PART_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write the new embeddings as one part, completely or not at all."""
        if not self._new:
            return
        values = np.stack(list(self._new.values()))
        rows = np.empty(len(values), _row_dtype(values.shape[1]))
        rows["id"] = np.frombuffer(b"".join(self._new), "V16")
        rows["embedding"] = values
        path = self.folder / f"{time.time_ns():020d}-{os.getpid()}.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error, rows.nbytes) from error
        with atomic_file(path, rows.nbytes, sync_name=False) as file:
            np.save(file, rows)
            file.seek(0)
            file.write(hashlib.file_digest(file, "sha256").digest())  # at the end, where reading left off
        self._new.clear()
        self._read(path)

    def _get(self, key: bytes) -> NDArray[np.float32]:
        if key in self._new:
            return self._new[key]
        location = self._find(key)
        if location is None:
            raise KeyError(key)
        path, row = location
        return self._parts[path]["embedding"][row]

    def _find(self, key: bytes) -> tuple[Path, int] | None:
        """Part and row of an id's embedding; damaged parts are removed on the way."""
        while (location := self._location.get(key)) is not None:
            path = location[0]
            if path in self._verified:
                return location
            if _checksum_matches(path):
                self._verified.add(path)
            else:
                self._remove(path)
        return None

    def _read(self, path: Path) -> None:
        try:
            rows = np.load(path, mmap_mode="r")
            if rows.ndim != 1 or rows.dtype != _row_dtype(*rows.dtype["embedding"].shape):
                raise ValueError
            ids = rows["id"].tolist()
        except Exception:  # a damaged header makes numpy raise many kinds of errors
            self._remove(path)
            return
        self._location.update((key, (path, row)) for row, key in enumerate(ids))
        self._parts[path] = rows

    def _remove(self, path: Path) -> None:
        if not self._warned:
            print(f"{path} fails its checksum; its embeddings are computed again", file=sys.stderr)
            self._warned = True
        with suppress(OSError):  # the store may be read-only
            path.unlink()
        self._parts.pop(path, None)
        self._location = {
            key: (part, row)
            for part, rows in self._parts.items()
            for row, key in enumerate(rows["id"].tolist())  # another part may contain some of the ids too
        }


def _row_dtype(length: int) -> np.dtype:
    return np.dtype([("id", "V16"), ("embedding", "<f4", (length,))])


def _checksum_matches(path: Path) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(memoryview(data)[:-_DIGEST]).digest() == data[-_DIGEST:]
