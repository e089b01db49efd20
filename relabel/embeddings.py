"""Embeddings that were computed once, in the store's cache/; deleting them costs forward passes and nothing else."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ..store.errors import cannot_write

PART = 4096  # embeddings in a file


class EmbeddingCache:
    """Embeddings (E,) float32 by id, in files of (id, embedding) rows that are read as memory maps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fresh: dict[bytes, NDArray[np.float32]] = {}
        self._parts: list[NDArray] = []
        self._place: dict[bytes, tuple[int, int]] = {}
        """Id → number of the part, row in it."""
        for path in sorted(folder.glob("*.npy")):
            self._read(path)

    def __contains__(self, identity: UUID) -> bool:
        return identity.bytes in self._place or identity.bytes in self._fresh

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
        rows = np.empty(len(values), [("id", "V16"), ("embedding", "f4", values.shape[1:])])
        rows["id"] = np.frombuffer(b"".join(self._fresh), "V16")
        rows["embedding"] = values
        path = self.folder / f"{time.time_ns():020d}-{os.getpid()}.npy"
        temporary = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.save(file, rows)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise cannot_write(path, error, rows.nbytes) from error
        self._fresh.clear()
        self._read(path)

    def _one(self, key: bytes) -> NDArray[np.float32]:
        if key in self._fresh:
            return self._fresh[key]
        part, row = self._place[key]
        return self._parts[part]["embedding"][row]

    def _read(self, path: Path) -> None:
        try:
            rows = np.load(path, mmap_mode="r")
            ids = rows["id"].tolist()
        except (OSError, ValueError, IndexError):  # cut off or of something else: what it held is embedded again
            path.unlink(missing_ok=True)
            return
        self._place.update((key, (len(self._parts), row)) for row, key in enumerate(ids))
        self._parts.append(rows)
