"""Which crops of which images training uses, as columns: a million pairs take seconds, and no object for each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..core.id_columns import Keys, as_keys, content_keys, distinct_keys, key_bytes, keys_of, with_affixes
from ..models.families import Family
from ..store.images import stored_at
from .config import TrainConfig
from .crops import POSITIONS, Crop, bucket
from .pairs import Pair, Pairs
from .seeds import derived_seed, derived_seeds

_AT_ONCE = 65_536  # ids, of which the hashing of a million at a time takes 250 MB
_bucket = lru_cache(4096)(bucket)


def crop_of(pair: Pair, config: TrainConfig, family: Family) -> Crop:
    """The crop of a pair, not mirrored: a square of the resolution, or the bucket nearest to its images."""
    resolution = config.resolution or family.resolution
    height, width = resolution, resolution
    if config.aspect_buckets:
        height, width = _bucket(*pair.size, resolution, family.sides_multiple)
    position = 0.5
    if config.random_crop:
        position = POSITIONS[derived_seed(config.seed, "crop", pair.pair_id) % len(POSITIONS)]
    return Crop(height, width, position)


def crop_sizes(rows: pa.Table, config: TrainConfig, family: Family) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """The different sizes of the crops of pairs, height and width, and the number of each pair's size, (N,)."""
    resolution = config.resolution or family.resolution
    if not config.aspect_buckets:
        return [(resolution, resolution)], np.zeros(len(rows), np.int64)
    # np.rint rounds as round() does
    height, width = (np.rint(rows[name].to_numpy()).astype(np.int64) for name in ("height", "width"))
    shapes, of_row = np.unique(height << 32 | width, return_inverse=True)
    buckets = [
        _bucket(shape >> 32, shape & (2**32 - 1), resolution, family.sides_multiple) for shape in shapes.tolist()
    ]
    sizes = list(dict.fromkeys(buckets))
    return sizes, np.array([sizes.index(size) for size in buckets], np.int64)[of_row]


@dataclass(frozen=True)
class ImageCrops:
    """Every crop of every image that training and validation can use, N in all, as ids of their latents."""

    keys: Keys  # (N,)
    image: NDArray[np.int64]  # (N,), number of the image
    crop: NDArray[np.int64]  # (N,), number of the crop
    images: Keys
    crops: list[Crop]
    formats: list[str]  # of each image, its file's extension
    image_format: NDArray[np.int8]

    @property
    def n_images(self) -> int:
        return len(self.images)

    def select(self, rows: NDArray[np.int64]) -> "ImageCrops":
        """The crops with these numbers, in this order, among the same images."""
        return replace(self, keys=self.keys[rows], image=self.image[rows], crop=self.crop[rows])

    def by_size(self) -> Iterator[tuple[tuple[int, int], NDArray[np.int64]]]:
        """The sizes of these crops, in order, and the numbers of the crops of each."""
        sizes = sorted({self.crops[crop].size for crop in np.unique(self.crop).tolist()})
        of_crop = np.array([sizes.index(crop.size) if crop.size in sizes else -1 for crop in self.crops])
        for number, size in enumerate(sizes):
            yield size, np.flatnonzero(of_crop[self.crop] == number)

    def sources(self, ids: Sequence[UUID]) -> list[tuple[UUID, str, Crop]]:
        """Image, path relative to the store's folder, and crop of each id; the keys must be sorted."""
        sources = []
        for row in np.searchsorted(self.keys, as_keys(ids)).tolist():
            number = int(self.image[row])
            image = UUID(bytes=self.images[number : number + 1].tobytes())
            path = stored_at(image, self.formats[self.image_format[number]])
            sources.append((image, path, self.crops[self.crop[row]]))
        return sources


@dataclass(frozen=True)
class PairCrops:
    """Which of the crops each pair uses; T training pairs, V validation pairs."""

    crops: ImageCrops
    plain: NDArray[np.int64]  # (2, T + V), crops of the chosen and the rejected image, training pairs first
    mirrored: NDArray[np.int64] | None  # (2, T), if pairs are mirrored
    n_train: int

    def of_training(self, pairs: NDArray[np.int64], mirrored: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Numbers of the crops of training pairs, each once.

        Args:
            pairs: their numbers.
            mirrored: which of them are; none if not given.
        """
        crops = self.plain[:, pairs]
        if self.mirrored is not None and mirrored is not None:
            crops = np.where(mirrored, self.mirrored[:, pairs], crops)
        return np.unique(crops)

    def of_validation(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Likewise of validation pairs."""
        return np.unique(self.plain[:, self.n_train + pairs])


def pair_crops(pairs: Pairs, config: TrainConfig, family: Family) -> PairCrops:
    """The crops that the pairs can use, each once, in no particular order."""
    tables = [pairs.train.table, pairs.validation.table]
    rows = pa.concat_tables(tables)
    # in numpy, which gives the memory back: Arrow keeps 240 MB after a million pairs
    images, codes = distinct_keys(np.concatenate([keys_of(rows["chosen"]), keys_of(rows["rejected"])]))
    formats, image_format = _formats(rows, codes, len(images))
    crops, of_pair = _pair_crops(rows, config, family)
    # a number for each image and crop; the mirrored crops of the training pairs follow the others
    both = (codes * len(crops) + np.tile(of_pair, 2)).reshape(2, -1)
    used, plain = np.unique(both, return_inverse=True)
    image, crop = used // len(crops), used % len(crops)
    mirrored = None
    if config.random_flip:
        flipped, mirrored = np.unique(both[:, : len(tables[0])], return_inverse=True)
        mirrored = len(used) + mirrored.reshape(2, -1)
        image = np.concatenate([image, flipped // len(crops)])
        crop = np.concatenate([crop, flipped % len(crops) + len(crops)])
        crops += [replace(one, mirrored=True) for one in crops]
    all_crops = ImageCrops(_keys(images, image, crop, crops), image, crop, images, crops, formats, image_format)
    return PairCrops(all_crops, plain.reshape(2, -1), mirrored, len(tables[0]))


def _formats(rows: pa.Table, codes: NDArray[np.int64], n_images: int) -> tuple[list[str], NDArray[np.int8]]:
    """The different formats, and the number of each image's, (n_images,).

    Args:
        codes: numbers of the chosen images, then of the rejected ones.
    """
    formats: list[str] = []
    image_format, start = np.zeros(n_images, np.int8), 0
    for chunk in (*rows["chosen_format"].chunks, *rows["rejected_format"].chunks):
        values = chunk.dictionary_encode()
        formats += [name for name in values.dictionary.to_pylist() if name not in formats]
        numbers = np.array([formats.index(name) for name in values.dictionary.to_pylist()], np.int8)
        image_format[codes[start : start + len(chunk)]] = numbers[values.indices.to_numpy()]
        start += len(chunk)
    return formats, image_format


def _pair_crops(rows: pa.Table, config: TrainConfig, family: Family) -> tuple[list[Crop], NDArray[np.int64]]:
    """The different crops of pairs, not mirrored, and the number of each pair's crop."""
    sizes, of_row = crop_sizes(rows, config, family)
    if not config.random_crop:
        return [Crop(*size) for size in sizes], of_row
    pair_ids, row_ids = distinct_keys(keys_of(rows["pair_id"]))
    places = (derived_seeds(config.seed, "crop", ids=pair_ids) % np.uint64(len(POSITIONS))).astype(np.int64)
    crops = [Crop(*size, position) for size in sizes for position in POSITIONS]
    return crops, of_row * len(POSITIONS) + places[row_ids]


def _keys(images: Keys, image: NDArray[np.int64], crop: NDArray[np.int64], crops: list[Crop]) -> Keys:
    """`Crop.key` of each image and crop."""
    keys = np.empty(len(image), "S16")
    for number, one in enumerate(crops):
        rows = np.flatnonzero(crop == number)
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            keys[some] = content_keys(with_affixes(b"", key_bytes(images[image[some]]), one.key_suffix()))
    return keys


def uses_any(rows: pa.Table, images: Sequence[UUID]) -> NDArray[np.bool_]:
    """Whether each pair has one of the images."""
    values = pa.array([image.bytes for image in images], pa.binary(16))
    chosen, rejected = (
        pc.call_function("is_in", [rows[name]], pc.SetLookupOptions(values)) for name in ("chosen", "rejected")
    )
    return chosen.to_numpy() | rejected.to_numpy()
