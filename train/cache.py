"""Latents and prompt embeddings, computed once and kept in the store's cache/ in memory-mapped files.

The cache is keyed by what made it (weights of the encoder, crop of the image), so runs share it and it is safe to delete.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import UUID

import torch
from torch import Tensor

from ..core.ids import content_id
from ..core.signals import StopSignal
from ..store import BadDataError, IntegrityError, PairStore, load_image
from .crops import Crop
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
    crops: Mapping[UUID, set[Crop]],
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    key: str,
    stop: StopSignal | None = None,
    max_unreadable: float = 0.01,
    ranks: Ranks = ALONE,
) -> tuple[TensorCache, Pairs]:
    """Encode the crops of the pairs' images that are not in the cache yet.

    Args:
        crops: of each image.
        encode: from pixels (N, 3, H, W) to mean and standard deviation of their scaled latents, each (N, C, h, w).
        key: hash of the encoder's weights.

    Returns:
        The cache, with mean and std of each crop's scaled latents (C, h, w) and CROP_COORDINATES, (4,): original height and
        width, top and left of the crop; and the pairs whose images could both be read.

    Raises:
        BadDataError: if more than `max_unreadable` of the images cannot be read.
        Interrupted: after a signal.
    """
    paths = pairs.image_paths()
    work = {crop.key(image): (image, crop) for image, used in crops.items() for crop in used}
    cache, missing = open_cache(store.path / "cache" / f"latents-{key[:16]}", sorted(work), ranks)
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

    with CropReader(lambda image: load_image(store.path / paths[image], image), work) as reader:
        for size in sorted({work[identity][1].size for identity in missing}):
            alike = [identity for identity in missing if work[identity][1].size == size]
            alike.sort(key=lambda identity: (work[identity][0], identity))  # crops of an image are read together
            cache.fill(alike, encoded, "encoding images", encode_batch(*size), stop, ranks, reader.start)
    for found in ranks.gather(dict(unreadable)):
        unreadable |= found
    ranks.together(lambda: refuse_absent(cache, [i for i, (image, _) in work.items() if image not in unreadable]))
    if not unreadable:
        return cache, pairs

    def refuse_many() -> None:
        if len(unreadable) > max_unreadable * len(paths):
            reasons = ", ".join(sorted(set(unreadable.values())))
            raise BadDataError(
                f"{len(unreadable)} of {len(paths)} images cannot be used ({reasons}); `prefloop store check` names them"
            )

    ranks.together(refuse_many)
    if ranks.is_main:
        print(f"{len(unreadable)} images cannot be used; their pairs are excluded", file=sys.stderr)
    readable = (
        part.select(at for at, pair in enumerate(part) if not {pair.chosen, pair.rejected} & unreadable.keys())
        for part in (pairs.train, pairs.validation)
    )
    return cache, Pairs(*readable)


def refuse_absent(cache: TensorCache, ids: Iterable[UUID]) -> None:
    """
    Raises:
        IntegrityError: if a row that was there, or was computed, cannot be read.
    """
    if absent := cache.missing(ids):
        raise IntegrityError(
            f"{len(absent)} rows of {cache.folder} cannot be read any more; the same command computes them again"
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
    cache, missing = open_cache(store.path / "cache" / f"prompt-embeds-{key[:16]}", sorted(prompts), ranks)

    def encoded(ids: Sequence[UUID]) -> Rows:
        with torch.inference_mode():
            embeds = encode([prompts[identity] for identity in ids])
        return list(ids), {name: _kept(rows, dtype) for name, rows in embeds.items()}

    cache.fill(missing, encoded, "encoding prompts", 64, stop, ranks)
    ranks.together(lambda: refuse_absent(cache, prompts))
    return cache
