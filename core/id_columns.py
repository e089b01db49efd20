"""Ids of many rows at once: columns of 16 bytes instead of UUID objects, of which a million take a second and 100 MB."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Keys = NDArray[np.bytes_]
"""Ids, (N,) of dtype S16; they sort as UUIDs do."""
_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8).reshape(256, 2)
_DASHES = (8, 13, 18, 23)  # places of the dashes in a UUID's 36 characters


def as_keys(ids: Iterable[UUID]) -> Keys:
    return np.frombuffer(b"".join([identity.bytes for identity in ids]), "S16")


def keys_of(column: Any) -> Keys:
    """The keys in an Arrow column of 16 bytes each, without nulls."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_chunk_keys(chunk) for chunk in chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.empty(0, "S16")


def _chunk_keys(chunk: Any) -> Keys:
    chunk = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    if not pa.types.is_fixed_size_binary(chunk.type):
        chunk = chunk.cast(pa.binary(16))
    assert chunk.null_count == 0
    return np.frombuffer(chunk.buffers()[1], "S16", len(chunk), 16 * chunk.offset)


def id_array(keys: Keys) -> pa.Array:
    """Keys as an Arrow array of 16 bytes each."""
    buffer = pa.py_buffer(np.ascontiguousarray(keys))
    return pa.Array.from_buffers(pa.binary(16), len(keys), [None, buffer])  # type: ignore[arg-type]


def key_heads(keys: Keys) -> NDArray[np.uint64]:
    """The first 8 bytes of each key as a number, (N,), in the order of the keys: numbers are compared several times faster."""
    return np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)


def key_order(keys: Keys) -> NDArray[np.intp]:
    """What sorts the keys; equal ones stay in their order."""
    order = np.argsort(key_heads(keys), kind="stable")
    ordered = keys[order]
    return order if (ordered[1:] >= ordered[:-1]).all() else np.argsort(keys, kind="stable")


def distinct_keys(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """The different keys, ascending, and the number of each row's key among them, (N,)."""
    order = key_order(keys)
    ordered = keys[order]
    is_new = np.ones(len(keys), np.bool_)
    is_new[1:] = ordered[1:] != ordered[:-1]
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = np.cumsum(is_new) - 1
    return ordered[is_new], numbers


def key_bytes(keys: Keys) -> NDArray[np.uint8]:
    """(N, 16)."""
    return np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 16)


def content_keys(rows: NDArray[np.uint8]) -> Keys:
    """`content_id` of each row of bytes, (N, K)."""
    length, data, sha256 = rows.shape[1], rows.tobytes(), hashlib.sha256
    starts = range(0, len(data), length)
    return np.frombuffer(b"".join([sha256(data[at : at + length]).digest()[:16] for at in starts]), "S16")


def with_affixes(prefix: bytes, rows: NDArray[np.uint8], suffix: bytes) -> NDArray[np.uint8]:
    """Rows of bytes (N, K) between the same prefix and suffix."""
    ends = [np.broadcast_to(np.frombuffer(end, np.uint8), (len(rows), len(end))) for end in (prefix, suffix)]
    return np.concatenate([ends[0], rows, ends[1]], axis=1)


def id_texts(keys: Keys) -> NDArray[np.uint8]:
    """The characters of str(UUID) of each key, (N, 36)."""
    texts = np.full((len(keys), 36), ord("-"), np.uint8)
    places = [place for place in range(36) if place not in _DASHES]
    texts[:, places] = _HEX[key_bytes(keys)].reshape(-1, 32)
    return texts


class IdColumn(Sequence[UUID]):
    """Keys as a sequence of UUIDs, which are made on access."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> UUID: ...
    @overload
    def __getitem__(self, at: slice) -> "IdColumn": ...
    def __getitem__(self, at: "int | slice") -> "UUID | IdColumn":
        if isinstance(at, slice):
            return IdColumn(self.keys[at])
        if not -len(self) <= at < len(self):
            raise IndexError(f"id {at} of {len(self)}")
        at %= len(self)
        return UUID(bytes=self.keys[at : at + 1].tobytes())  # an S16 scalar loses trailing zeros

    def __iter__(self) -> Iterator[UUID]:
        data = self.keys.tobytes()
        return (UUID(bytes=data[at : at + 16]) for at in range(0, len(data), 16))
