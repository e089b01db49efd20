"""Latents and prompt embeddings, computed once and kept in the store's cache/ in memory-mapped files.

The cache is keyed by what made it (weights of the encoder, crop of the image), so runs share it and it is safe to delete.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import numpy as np
import torch
from torch import Tensor

from ..core.id_columns import IdColumn, Keys, as_keys
from ..core.ids import content_id
from ..core.signals import StopSignal
from ..store import BadDataError, IntegrityError, PairStore, load_image
from .crop_plan import ImageCrops, uses_any
from .pairs import Pairs
from .ranks import ALONE, Ranks
from .read_ahead import CropReader
from .tensor_cache import Rows, TensorCache, open_cache

ENCODE_PIXELS = 16 * 512 * 512  # at once; sixteen images of 1024² would need more memory than training
CROP_COORDINATES = "frame"  # the tensor's name in files of version 0.1, whose latents are still used
EMPTY_PROMPT_ID = content_id(b"empty prompt")


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
    ranks: Ranks = ALONE,
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
    cache, missing = open_cache(store.path / "cache" / f"latents-{key[:16]}", np.sort(crops.keys), ranks)
    work = crops.of(missing)
    unreadable: dict[UUID, str] = {}

    def encoded(ids: Sequence[UUID]) -> Rows:
        read, failed = reader.take(ids)
        unreadable.update(failed)
        if not read:
            return [], {}
        pixels, coordinates = zip(*read.values(), strict=True)
        with torch.inference_mode():
            mean, std = encode(torch.stack(pixels))
        rows = {"mean": mean.half().cpu(), "std": std.half().cpu(), CROP_COORDINATES: torch.tensor(coordinates)}
        return list(read), rows

    with CropReader(lambda image, path: load_image(store.path / path, image), work.sources) as reader:
        for size, rows in work.by_size():
            # crops of an image are read together
            rows = rows[np.lexsort((work.keys[rows], work.images[work.image[rows]]))]
            batch = encode_batch(*size)
            cache.fill(IdColumn(work.keys[rows]), encoded, "encoding images", batch, stop, ranks, reader.start)
    for found in ranks.gather(dict(unreadable)):
        unreadable |= found
    used = crops.keys[~np.isin(crops.images, as_keys(unreadable))[crops.image]]
    ranks.together(lambda: refuse_absent(cache, used))
    if not unreadable:
        return cache, pairs

    def refuse_many() -> None:
        if len(unreadable) > max_unreadable * crops.n_images:
            reasons = ", ".join(sorted(set(unreadable.values())))
            raise BadDataError(
                f"{len(unreadable)} of {crops.n_images} images cannot be used ({reasons}); `prefloop store check` names them"
            )

    ranks.together(refuse_many)
    if ranks.is_main:
        print(f"{len(unreadable)} images cannot be used; their pairs are excluded", file=sys.stderr)
    train, validation = (
        part.select(np.flatnonzero(~uses_any(part.table, list(unreadable)))) for part in (pairs.train, pairs.validation)
    )
    return cache, replace(pairs, train=train, validation=validation)


def refuse_absent(cache: TensorCache, keys: Keys) -> None:
    """
    Raises:
        IntegrityError: if a row that was there, or was computed, cannot be read.
    """
    if absent := int(cache.lacks(keys).sum()):
        raise IntegrityError(
            f"{absent} rows of {cache.folder} cannot be read any more; the same command computes them again"
        )


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
    ranks: Ranks = ALONE,
) -> TensorCache:
    """Encode each distinct prompt once, and the empty one.

    Args:
        encode: from N prompts to tensors by name, each (N, ...), or a list of N (tokens, ...) if ragged.
        dtype: what they are kept in.
        key: hash of the encoders' weights.
        empty: the family's `negative_prompt`.
    """
    prompts = {EMPTY_PROMPT_ID: empty} | pairs.prompts()
    keys = np.sort(as_keys(prompts))
    cache, missing = open_cache(store.path / "cache" / f"prompt-embeds-{key[:16]}", keys, ranks)

    def encoded(ids: Sequence[UUID]) -> Rows:
        with torch.inference_mode():
            embeds = encode([prompts[identity] for identity in ids])
        return list(ids), {name: _kept(rows, dtype) for name, rows in embeds.items()}

    cache.fill(IdColumn(missing), encoded, "encoding prompts", 64, stop, ranks)
    ranks.together(lambda: refuse_absent(cache, keys))
    return cache
