"""Latents and prompt embeddings, computed once and kept in the store's cache/ in memory-mapped files.

The cache is keyed by what made it (weights of the encoder, crop of the image), so runs share it and it is safe to delete.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import cannot_write
from ..core.id_columns import IdColumn, Keys, as_keys
from ..core.ids import content_id
from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import BadDataError, ImageError, PairStore, load_image
from .crop_plan import ImageCrops, uses_any
from .crops import resize_and_crop
from .pairs import Pairs
from .shards import Shards
from .tensor_file import write_tensors

ENCODE_PIXELS = 16 * 512 * 512  # at once; sixteen images of 1024² would need more memory than training
SHARD = 1024  # rows per file
CROP_COORDINATES = "frame"  # the tensor's name in files of version 0.1, whose latents are still used
EMPTY_PROMPT_ID = content_id(b"empty prompt")
LENGTH = ".length"  # ends the name of the tensor with the lengths of ragged rows
Rows = tuple[list[UUID], Mapping[str, Tensor | list[Tensor]]]


class TensorCache:
    """Rows of tensors by id, in the safetensors files of one folder; finished files never change.

    A file is verified before its first row is read. If it is damaged or has no checksum, it is removed and its rows count as
    missing again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._shards = Shards(folder)

    def missing(self, ids: Iterable[UUID]) -> list[UUID]:
        """The ids that have no row, or whose file is damaged."""
        ids = list(ids)
        return [ids[at] for at in np.flatnonzero(self.lacks(as_keys(ids))).tolist()]

    def lacks(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each id has no row, or its file is damaged."""
        shards = self._shards
        number, _ = shards.rows.find(keys)
        for used in np.unique(number[number >= 0]).tolist():
            shards.open(shards.rows.names[used])
        if n := shards.remove_damaged():
            files = "1 file is" if n == 1 else f"{n} files are"
            print(
                f"{files} damaged, or without a checksum, in {self.folder}; removed, and what is needed of it is computed again",
                file=sys.stderr,
            )
            number, _ = shards.rows.find(keys)
        shards.write_index()
        return number < 0

    def add(self, ids: Sequence[UUID], tensors: dict[str, Tensor]) -> None:
        """Write rows as one file."""
        path = self.folder / f"{content_id(''.join(identity.hex for identity in ids).encode()).hex}.safetensors"
        write_tensors(path, tensors, {"ids": json.dumps([str(identity) for identity in ids])})
        self._shards.add(path.name, as_keys(ids))

    def _places(self, ids: Sequence[UUID]) -> Iterator[tuple[dict[str, Tensor], int]]:
        """The tensors of the file of each id, and its row in them; KeyError if it has none."""
        rows = self._shards.rows
        for identity, number, row in zip(ids, *(found.tolist() for found in rows.find(as_keys(ids))), strict=True):
            if number < 0:
                raise KeyError(identity)
            yield self._shards.tensors(rows.names[number]), row

    def rows(self, name: str, ids: Sequence[UUID]) -> Tensor:
        """The tensor `name` of the ids, stacked in their order; none may be missing."""
        return torch.stack([tensors[name][at] for tensors, at in self._places(ids)])

    def ragged(self, name: str, ids: Sequence[UUID]) -> list[Tensor]:
        """The tensor `name` of the ids, whose lengths may differ, without padding."""
        rows = []
        for tensors, at in self._places(ids):
            length = tensors[f"{name}{LENGTH}"][at] if f"{name}{LENGTH}" in tensors else None
            rows.append(tensors[name][at] if length is None else tensors[name][at, : int(length)])
        return rows

    def fill(
        self,
        missing: Sequence[UUID],
        rows_of: Callable[[Sequence[UUID]], Rows],
        what: str,
        batch: int,
        stop: StopSignal | None = None,
    ) -> None:
        """Add the missing rows, a batch at a time; `rows_of` may leave out rows that cannot be computed.

        Raises:
            Interrupted: after the batch in which a signal arrived; what was computed is kept.
        """
        if not missing:
            return
        at_once = max(SHARD // batch, 1) * batch  # whole batches, so that a resumed run has the same ones
        with progress(len(missing), what) as bar:
            for start in range(0, len(missing), at_once):
                ids: list[UUID] = []
                parts: list[Mapping[str, Tensor | list[Tensor]]] = []
                shard = missing[start : start + at_once]
                for at in range(0, len(shard), batch):
                    computed, tensors = rows_of(shard[at : at + batch])
                    if computed:
                        ids += computed
                        parts.append(tensors)
                    bar.update(len(shard[at : at + batch]))
                    if stop is not None and stop.requested:
                        break
                if ids:
                    self.add(ids, joined(parts))
                if stop is not None and stop.requested:
                    self._shards.write_index()
                if stop is not None:
                    stop.check(f"{what}: {bar.n} of {len(missing)} are kept")
        self._shards.write_index()


def joined(parts: Sequence[Mapping[str, Tensor | list[Tensor]]]) -> dict[str, Tensor]:
    """The rows of several batches; ragged ones are padded, with their lengths beside them."""
    tensors: dict[str, Tensor] = {}
    for name in parts[0]:
        rows = [row for part in parts for row in part[name]]
        if all(isinstance(part[name], Tensor) for part in parts):
            tensors[name] = torch.stack(rows)
        else:
            tensors[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            tensors[f"{name}{LENGTH}"] = torch.tensor([len(row) for row in rows])
    return tensors


def encode_batch(height: int, width: int) -> int:
    """How many images of that size are encoded at once."""
    return min(max(ENCODE_PIXELS // (height * width), 1), 64)


def cache_latents(
    store: PairStore,
    pairs: Pairs,
    crops: ImageCrops,
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    key: str,
    stop: StopSignal | None = None,
    max_unreadable: float = 0.01,
) -> tuple[TensorCache, Pairs]:
    """Encode the crops of the pairs' images that are not in the cache yet.

    Args:
        crops: those of the pairs' images, from `image_crops`.
        encode: from pixels (N, 3, H, W) to mean and standard deviation of their scaled latents, each (N, C, h, w).
        key: hash of the encoder's weights.

    Returns:
        The cache, with mean and std of each crop's scaled latents (C, h, w) and CROP_COORDINATES, (4,): original height and
        width, top and left of the crop; and the pairs whose images could both be read.

    Raises:
        BadDataError: if more than `max_unreadable` of the images cannot be read.
        Interrupted: after a signal.
    """
    cache = TensorCache(store.path / "cache" / f"latents-{key[:16]}")
    work = crops.select(np.flatnonzero(cache.lacks(crops.keys)))
    work = work.select(np.argsort(work.keys))
    unreadable: dict[UUID, str] = {}

    def encoded(ids: Sequence[UUID]) -> Rows:
        pixels, coordinates, readable = [], [], []
        for identity, (image, path, crop) in zip(ids, work.sources(ids), strict=True):
            try:
                cropped, crop_coordinates = resize_and_crop(load_image(store.path / path, image), crop)
            except ImageError as error:
                unreadable[image] = error.reason
                continue
            readable.append(identity)
            pixels.append(cropped)
            coordinates.append(crop_coordinates)
        if not readable:
            return [], {}
        with torch.inference_mode():
            mean, std = encode(torch.stack(pixels))
        rows = {"mean": mean.half().cpu(), "std": std.half().cpu(), CROP_COORDINATES: torch.tensor(coordinates)}
        return readable, rows

    for size, rows in work.by_size():
        cache.fill(IdColumn(work.keys[rows]), encoded, "encoding images", encode_batch(*size), stop)
    if not unreadable:
        return cache, pairs
    if len(unreadable) > max_unreadable * crops.n_images:
        reasons = ", ".join(sorted(set(unreadable.values())))
        raise BadDataError(
            f"{len(unreadable)} of {crops.n_images} images cannot be used ({reasons}); `prefloop store check` names them"
        )
    print(f"{len(unreadable)} images cannot be used; their pairs are excluded", file=sys.stderr)
    train, validation = (
        part.select(np.flatnonzero(~uses_any(part.table, list(unreadable)))) for part in (pairs.train, pairs.validation)
    )
    return cache, replace(pairs, train=train, validation=validation)


def _kept(rows: Tensor | list[Tensor], dtype: torch.dtype) -> Tensor | list[Tensor]:
    return rows.to(dtype).cpu() if isinstance(rows, Tensor) else [row.to(dtype).cpu() for row in rows]


def cache_prompt_embeds(
    store: PairStore,
    pairs: Pairs,
    encode: Callable[[list[str]], Mapping[str, Tensor | list[Tensor]]],
    dtype: torch.dtype,
    key: str,
    stop: StopSignal | None = None,
    empty: str = "",
) -> TensorCache:
    """Encode each distinct prompt once, and the empty one.

    Args:
        encode: from N prompts to tensors by name, each (N, ...), or a list of N (tokens, ...) if ragged.
        dtype: what they are kept in.
        key: hash of the encoders' weights.
        empty: the family's `negative_prompt`.
    """
    cache = TensorCache(store.path / "cache" / f"prompt-embeds-{key[:16]}")
    prompts = {EMPTY_PROMPT_ID: empty} | pairs.prompts()

    def encoded(ids: Sequence[UUID]) -> Rows:
        with torch.inference_mode():
            embeds = encode([prompts[identity] for identity in ids])
        return list(ids), {name: _kept(rows, dtype) for name, rows in embeds.items()}

    ids = np.sort(as_keys(prompts))
    cache.fill(IdColumn(ids[cache.lacks(ids)]), encoded, "encoding prompts", 64, stop)
    return cache
