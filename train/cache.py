"""Latents and prompt embeddings, computed once and kept in the store's cache/ in memory-mapped files.

The cache is keyed by what made it (weights of the encoder, crop of the image), so runs share it and it is safe to delete.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..core.id_columns import IdColumn, Keys, as_keys
from ..core.ids import content_id
from ..core.signals import StopSignal
from ..core.text import plural
from ..store import BadDataError, IntegrityError, PairStore, load_image
from .crop_plan import ImageCrops, PairCrops
from .pairs import Pairs
from .ranks import ALONE, Ranks
from .read_ahead import CropReader
from .tensor_cache import Rows, TensorCache, open_cache
from .vae import VaeEncoder

ENCODE_PIXELS = (
    2 * 256 * 256
)  # at once on a CPU, where more take longer per image: their activations do not fit its caches
ENCODE_PIXELS_ON_GPU = 4 * 512 * 512  # the model that is trained is in memory too
CROP_COORDINATES = "frame"  # the tensor's name in files of version 0.1, whose latents are still used
EMPTY_PROMPT_ID = content_id(b"empty prompt")
MAX_UNREADABLE = 0.01
"""Fraction of the images."""
ENOUGH_IMAGES = 5000
"""After which the fraction of unreadable ones is known well enough to end a run."""


def encode_batch(height: int, width: int, device: str = "cpu") -> int:
    """How many images of that size are encoded at once on a type of device."""
    pixels = ENCODE_PIXELS if device == "cpu" else ENCODE_PIXELS_ON_GPU
    return min(max(pixels // (height * width), 1), 64)


class LatentCache:
    """Latents of crops, each encoded when it is first asked for.

    A row is the mean and std of the crop's scaled latents (C, h, w), and CROP_COORDINATES, (4,): original height and width, top
    and left of the crop. Every process must make the same calls.

    Args:
        crops: of the pairs, all that may be asked for.
        key: hash of the encoder's weights and dtype.
        device: the type of device it encodes on.
    """

    def __init__(
        self,
        store: PairStore,
        crops: PairCrops,
        encode: VaeEncoder,
        key: str,
        stop: StopSignal,
        device: str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        self._store, self._encode, self._stop, self._device, self.ranks = store, encode, stop, device, ranks
        self.crops = crops
        self.rows, _ = open_cache(store.path / "cache" / f"latents-{key[:16]}", np.sort(crops.crops.keys), ranks)
        self.ready = range(0)
        """Positions in the sequence of training pairs whose latents are there."""
        self._asked = np.zeros(crops.crops.n_images, np.bool_)
        """Images that were asked for, cached or not: of a cache that is full only those that cannot be used are tried again."""
        self._unreadable: dict[UUID, str] = {}

    def fill(self, crops: NDArray[np.int64], show: bool = True) -> list[UUID]:
        """Encode those of the crops with these numbers that are not cached; the images among them that cannot be used.

        Args:
            show: a progress bar.

        Raises:
            BadDataError: if too many images cannot be used.
            Interrupted: after a signal.
        """
        asked = self.crops.crops.select(crops)
        asked = asked.select(np.argsort(asked.keys))
        self._asked[asked.image] = True
        # as the main process finds it: another run may be writing to the folder
        work = asked.select(self.ranks.from_main(np.flatnonzero(self.rows.absent(asked.keys))))
        if not len(work.keys):
            return []
        unreadable = self._encode_all(work, show)
        used = asked.keys[~np.isin(asked.images[asked.image], as_keys(unreadable))]
        self.ranks.together(lambda: refuse_absent(self.rows, used))
        new = unreadable.keys() - self._unreadable.keys()
        self._unreadable |= unreadable
        self.ranks.together(self._refuse_many)
        if new and self.ranks.is_main:
            print(
                f"{plural(len(new), 'image')} cannot be used; other pairs are used instead of theirs", file=sys.stderr
            )
        return sorted(unreadable)

    def _encode_all(self, work: ImageCrops, show: bool) -> dict[UUID, str]:
        unreadable: dict[UUID, str] = {}

        def encoded(ids: Sequence[UUID]) -> Rows:
            read, failed = reader.take(ids)
            unreadable.update(failed)
            if not read:
                return [], {}
            pixels, coordinates = zip(*read.values(), strict=True)
            # the rounding of an encoder depends on how many images it is given: always a whole batch, so that an image's
            # latents do not depend on what else is missing
            whole = torch.stack([*pixels, *pixels[:1] * (batch - len(pixels))])
            with torch.inference_mode():
                mean, std = (tensor[: len(pixels)].half().cpu() for tensor in self._encode(whole))
            self._encode.refuse_not_finite(mean, std)
            return list(read), {"mean": mean, "std": std, CROP_COORDINATES: torch.tensor(coordinates)}

        def opened(image: UUID, path: str) -> Image.Image:
            return load_image(self._store.path / path, image)

        try:
            with CropReader(opened, work.sources) as reader:
                for size, rows in work.by_size():
                    # crops of an image are read together
                    rows = rows[np.lexsort((work.keys[rows], work.images[work.image[rows]]))]
                    batch = encode_batch(*size, self._device)
                    missing = IdColumn(work.keys[rows])
                    self.rows.fill(
                        missing, encoded, "encoding images", batch, self._stop, self.ranks, reader.start, show
                    )
        finally:
            self._encode.rest()
        for found in self.ranks.gather(dict(unreadable)):
            unreadable |= found
        return unreadable

    def _refuse_many(self) -> None:
        n, of = len(self._unreadable), min(len(self._asked), max(int(self._asked.sum()), ENOUGH_IMAGES))
        if n > MAX_UNREADABLE * of:
            reasons = ", ".join(sorted(set(self._unreadable.values())))
            raise BadDataError(f"{n} of {of} images cannot be used ({reasons}); `prefloop store check` names them")

    @property
    def n_sizes(self) -> int:
        """In how many sizes the crops come, each of which needs files of its own."""
        return len({crop.size for crop in self.crops.crops.crops})

    def is_ready(self, first: int, end: int) -> bool:
        """Whether the latents of pairs number first to end of the sequence are there."""
        return self.ready.start <= first and end <= self.ready.stop

    def release(self) -> None:
        """Free the encoder's memory; it is loaded again if it is needed."""
        self._encode.release()


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
