"""Embeddings on disk in the store's cache/; deleting them only costs forward passes."""

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UsageError, cannot_write
from ..core.files import atomic_file
from ..core.id_columns import Keys, as_keys
from ..core.row_index import RowIndex

PART_SIZE = 4096  # embeddings per file
N_OPEN = 64
"""Parts that are mapped into memory at once: each holds a file descriptor."""
_DIGEST = hashlib.sha256().digest_size


class EmbeddingCache:
    """Embeddings (E,) float32 by id, in parts: files of two NumPy arrays, the ids first, so that a start reads only these.

    A part ends with the sha256 of the bytes before it, which is compared when one of its rows is first used, so that
    unused parts are not read. A damaged part is removed, and its images or prompts are embedded again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._new: dict[bytes, NDArray[np.float32]] = {}
        self._not_finite: dict[bytes, NDArray[np.float32]] = {}
        """Kept for this run alone: after the cause is mended they are computed again."""
        self._length: int | None = None
        """Of an embedding; None until the first is added."""
        self._index = RowIndex()
        """Id → part and row."""
        self._mapped: dict[str, NDArray[np.float32]] = {}
        """Embeddings of the parts used last."""
        self._verified: set[str] = set()
        """Parts whose checksum matches."""
        self._warned = False
        for path in sorted(folder.glob("*.npy")):
            try:
                self._index.add(path.name, _ids_of(path))
            except Exception:  # a damaged header makes numpy raise many kinds of errors
                self._remove(path.name)

    def __contains__(self, identity: UUID) -> bool:
        return bool(self.contains(as_keys([identity]))[0])

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of the ids have an embedding, (N,); damaged parts are removed on the way."""
        found = self._find(keys)[0] >= 0
        if self._new or self._not_finite:
            for at in np.flatnonzero(~found):
                key = keys[at : at + 1].tobytes()
                found[at] = key in self._new or key in self._not_finite
        return found

    def get(self, ids: Sequence[UUID]) -> NDArray[np.float32]:
        """Embeddings (B, E) of ids in the cache; KeyError for any other."""
        files, rows = self._find(as_keys(ids))
        embeddings: list[Any] = [self._new.get(i.bytes, self._not_finite.get(i.bytes)) for i in ids]
        for file in np.unique(files[files >= 0]).tolist():
            at = np.flatnonzero(files == file)
            for place, embedding in zip(at, self._embeddings(self._index.names[file])[rows[at]], strict=True):
                embeddings[place] = embedding
        for identity, embedding in zip(ids, embeddings, strict=True):
            if embedding is None:
                raise KeyError(identity)
        return np.stack(embeddings)

    def add(self, ids: Sequence[UUID], embeddings: NDArray[np.float32]) -> None:
        """
        Raises:
            UsageError: if the embeddings in the cache have another length.
        """
        self._refuse_other_length(embeddings.shape[1])
        all_finite: Any = np.isfinite(embeddings).all(1)
        for identity, embedding, is_finite in zip(ids, embeddings, all_finite, strict=True):
            (self._new if is_finite else self._not_finite)[identity.bytes] = embedding
        if len(self._new) >= PART_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write the new embeddings as one part, completely or not at all."""
        if not self._new:
            return
        values = np.stack(list(self._new.values())).astype("<f4", copy=False)
        keys = np.frombuffer(b"".join(self._new), "S16")
        path = self.folder / f"{time.time_ns():020d}-{os.getpid()}.npy"
        size = keys.nbytes + values.nbytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error, size) from error
        with atomic_file(path, size, sync_name=False) as file:
            np.save(file, keys)
            np.save(file, values)
            file.seek(0)
            file.write(hashlib.file_digest(file, "sha256").digest())  # at the end, where reading left off
        self._new.clear()
        self._index.add(path.name, keys)

    def _refuse_other_length(self, length: int) -> None:
        if self._length is None:
            self._length = length
            if (name := next(iter(self._index.files()), None)) is not None:
                with suppress(Exception):  # a damaged part, which is removed once it is used
                    self._length = int(_map_embeddings(self.folder / name).shape[1])
        if length != self._length:
            raise UsageError(
                f"{self.folder} has embeddings of {self._length} numbers by this backbone, and got one of {length}; give the scorer's "
                "`backbone` another name whenever its embeddings change, or remove that folder"
            )

    def _find(self, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """As `RowIndex.find`, among intact parts; the damaged ones that are met are removed."""
        while True:
            files, rows = self._index.find(keys)
            used = {self._index.names[file] for file in np.unique(files[files >= 0]).tolist()}
            damaged = [name for name in used - self._verified if not _checksum_matches(self.folder / name)]
            self._verified |= used.difference(damaged)
            if not damaged:
                return files, rows
            for name in sorted(damaged):  # another part may contain some of the ids too
                self._remove(name)

    def _embeddings(self, name: str) -> NDArray[np.float32]:
        """Those of an intact part, in the order of its ids."""
        values = self._mapped.pop(name, None)
        if values is None:
            values = _map_embeddings(self.folder / name)
            while len(self._mapped) >= N_OPEN:
                del self._mapped[next(iter(self._mapped))]
        self._mapped[name] = values
        return values

    def _remove(self, name: str) -> None:
        path = self.folder / name
        if not self._warned:
            print(f"{path} fails its checksum; its embeddings are computed again", file=sys.stderr)
            self._warned = True
        with suppress(OSError):  # the store may be read-only
            path.unlink()
        self._mapped.pop(name, None)
        self._index.remove(name)


def _ids_of(path: Path) -> Keys:
    """The ids of a part, without reading its embeddings, unless prefloop 0.1 wrote it: with id and embedding in turn."""
    ids = np.load(path, mmap_mode="r")
    if _is_old(ids):
        return np.ascontiguousarray(ids["id"]).view("S16")
    if ids.ndim != 1 or ids.dtype != "S16":
        raise ValueError(f"{path} is not a part of the cache")
    return np.array(ids)


def _map_embeddings(path: Path) -> NDArray[np.float32]:
    """(N, E), memory-mapped."""
    ids: Any = np.load(path, mmap_mode="r")
    if _is_old(ids):
        return ids["embedding"]
    with open(path, "rb") as file:
        file.seek(ids.offset + ids.nbytes)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", file.tell(), shape)


def _is_old(rows: NDArray[Any]) -> bool:
    names = rows.dtype.names
    return names is not None and rows.dtype == np.dtype(
        [("id", "V16"), ("embedding", "<f4", rows.dtype["embedding"].shape)]
    )


def _checksum_matches(path: Path) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(memoryview(data)[:-_DIGEST]).digest() == data[-_DIGEST:]
