"""Images read and cropped by threads while the encoder works on those before them."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

from PIL import Image
from torch import Tensor

from ..store import ImageError
from .crops import Crop, resize_and_crop

Crops = dict[UUID, tuple[Tensor, list[int]]]


class CropReader:
    """Decodes each image of a batch once, however many of its crops the batch has; a block in which threads run.

    Args:
        read: opens an image, by its id and path.
        sources: the image, its path, and the crop of each id.
    """

    def __init__(
        self,
        read: Callable[[UUID, str], Image.Image],
        sources: Callable[[Sequence[UUID]], Sequence[tuple[UUID, str, Crop]]],
    ) -> None:
        self._read, self._sources = read, sources
        self._pool = ThreadPoolExecutor(n_threads())
        self._waiting: dict[tuple[UUID, ...], dict[UUID, Future[Crops]]] = {}

    def __enter__(self) -> "CropReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, ids: Sequence[UUID]) -> None:
        """Begin to read what `take` will be asked for."""
        if tuple(ids) in self._waiting:
            return
        by_image: dict[tuple[UUID, str], dict[UUID, Crop]] = {}
        for identity, (image, path, crop) in zip(ids, self._sources(ids), strict=True):
            by_image.setdefault((image, path), {})[identity] = crop
        self._waiting[tuple(ids)] = {
            image: self._pool.submit(self._cropped, image, path, crops) for (image, path), crops in by_image.items()
        }

    def take(self, ids: Sequence[UUID]) -> tuple[Crops, dict[UUID, str]]:
        """Pixels and crop coordinates, as `resize_and_crop` gives them, of the ids whose images can be read; the images that
        cannot, each with the reason."""
        self.start(ids)
        crops: Crops = {}
        unreadable: dict[UUID, str] = {}
        for image, future in self._waiting.pop(tuple(ids)).items():
            try:
                crops |= future.result()
            except ImageError as error:
                unreadable[image] = error.reason
        return {identity: crops[identity] for identity in ids if identity in crops}, unreadable

    def _cropped(self, image: UUID, path: str, crops: Mapping[UUID, Crop]) -> Crops:
        decoded = self._read(image, path)
        return {identity: resize_and_crop(decoded, crop) for identity, crop in crops.items()}


def n_threads() -> int:
    """Threads of this process that decode: its part of the machine's cores, at most 8."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)
    return max(1, min(8, (os.cpu_count() or 1) // max(local, 1)))
