"""Embeddings that were computed once, in the store's cache/; deleting them costs forward passes and nothing else."""

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

PART = 4096  # embeddings in a file
_DIGEST = hashlib.sha256().digest_size


class EmbeddingCache:
    """Embeddings (E,) float32 by id, in files of (id, embedding) rows that are read as memory maps.

    A file ends with the sha256 of what stands before it. It is compared when the first of its rows is asked for, so that
    nothing is read that is not used; a file that fails is removed, and what it held is embedded again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fresh: dict[bytes, NDArray[np.float32]] = {}
        self._parts: dict[Path, NDArray] = {}
        self._whole: set[Path] = set()
        """Parts whose checksum was compared."""
        self._place: dict[bytes, tuple[Path, int]] = {}
        """Id → part, row in it."""
        self._warned = False
        for path in sorted(folder.glob("*.npy")):
            self._read(path)

    def __contains__(self, identity: UUID) -> bool:
        return identity.bytes in self._fresh or self._found(identity.bytes) is not None

    def get(self, ids: Sequence[UUID]) -> NDArray[np.float32]:
        """(B, E), of ids that are there."""
        return np.stack([self._one(identity.bytes) for identity in ids])

    def add(self, ids: Sequence[UUID], embeddings: NDArray[np.float32]) -> None:
        self._fresh.update(zip((identity.bytes for identity in ids), embeddings, strict=True))
        if len(self._fresh) >= PART:
            self.flush()

    def flush(self) -> None:
        """Write what is new: whole on disk under its name, or not at all."""
        if not self._fresh:
            return
        values = np.stack(list(self._fresh.values()))
        rows = np.empty(len(values), _row(values.shape[1]))
        rows["id"] = np.frombuffer(b"".join(self._fresh), "V16")
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
        self._fresh.clear()
        self._read(path)

    def _one(self, key: bytes) -> NDArray[np.float32]:
        if key in self._fresh:
            return self._fresh[key]
        found = self._found(key)
        if found is None:
            raise KeyError(key)
        path, row = found
        return self._parts[path]["embedding"][row]

    def _found(self, key: bytes) -> tuple[Path, int] | None:
        """Where an id's embedding lies, in a part that is whole."""
        while (place := self._place.get(key)) is not None:
            path = place[0]
            if path in self._whole:
                return place
            if _is_whole(path):
                self._whole.add(path)
            else:
                self._lose(path)
        return None

    def _read(self, path: Path) -> None:
        try:
            rows = np.load(path, mmap_mode="r")
            if rows.ndim != 1 or rows.dtype != _row(*rows.dtype["embedding"].shape):
                raise ValueError
            ids = rows["id"].tolist()
        except Exception:  # a header that was changed fails numpy in many ways
            self._lose(path)
            return
        self._place.update((key, (path, row)) for row, key in enumerate(ids))
        self._parts[path] = rows

    def _lose(self, path: Path) -> None:
        if not self._warned:
            print(f"{path} fails its checksum; its embeddings are computed again", file=sys.stderr)
            self._warned = True
        with suppress(OSError):  # a store that cannot be written
            path.unlink()
        self._parts.pop(path, None)
        self._place = {
            key: (part, row)
            for part, rows in self._parts.items()
            for row, key in enumerate(rows["id"].tolist())  # another part may hold some of its ids too
        }


def _row(length: int) -> np.dtype:
    return np.dtype([("id", "V16"), ("embedding", "<f4", (length,))])


def _is_whole(path: Path) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(memoryview(data)[:-_DIGEST]).digest() == data[-_DIGEST:]
