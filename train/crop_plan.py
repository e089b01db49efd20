"""Which crops of which images training uses, as columns: a million pairs take seconds, and no object for each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..core.id_columns import Keys, as_keys, content_keys, key_bytes, keys_of, with_affixes
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
    """Every crop of every image that training and validation use, N in all, as ids of their latents."""

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

    def of(self, keys: Keys) -> "ImageCrops":
        """The crops that have these keys, in the order of the keys."""
        order = np.argsort(self.keys)
        return self.select(order[np.searchsorted(self.keys, np.sort(keys), sorter=order)])

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


def image_crops(pairs: Pairs, config: TrainConfig, family: Family) -> ImageCrops:
    """The crops that the pairs use, each once, in no particular order."""
    tables = [pairs.train.table, pairs.validation.table]
    rows = pa.concat_tables(tables)
    codes, images = _encoded(rows, "chosen", "rejected")
    format_codes, formats = _encoded(rows, "chosen_format", "rejected_format")
    image_format = np.zeros(len(images), np.int8)
    image_format[codes] = format_codes
    crops, of_pair = _pair_crops(rows, config, family)
    # a number for each image and crop; the mirrored crops of the training pairs follow the others
    used = np.unique(codes * len(crops) + np.tile(of_pair, 2))
    image, crop = used // len(crops), used % len(crops)
    if config.random_flip:
        training = np.tile(np.arange(len(rows)) < len(tables[0]), 2)
        mirrored = np.unique((codes * len(crops) + np.tile(of_pair, 2))[training])
        image = np.concatenate([image, mirrored // len(crops)])
        crop = np.concatenate([crop, mirrored % len(crops) + len(crops)])
        crops += [replace(one, mirrored=True) for one in crops]
    ids = keys_of(images)
    return ImageCrops(_keys(ids, image, crop, crops), image, crop, ids, crops, formats.to_pylist(), image_format)


def _encoded(rows: pa.Table, first: str, second: str) -> tuple[NDArray[np.int64], pa.Array]:
    """The values of two columns, one after the other, as numbers of their distinct values."""
    both = pa.chunked_array([*rows[first].chunks, *rows[second].chunks], rows[first].type)
    encoded = both.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def _pair_crops(rows: pa.Table, config: TrainConfig, family: Family) -> tuple[list[Crop], NDArray[np.int64]]:
    """The different crops of pairs, not mirrored, and the number of each pair's crop."""
    sizes, of_row = crop_sizes(rows, config, family)
    if not config.random_crop:
        return [Crop(*size) for size in sizes], of_row
    pair_ids, row_ids = _distinct(rows["pair_id"])
    places = (derived_seeds(config.seed, "crop", ids=pair_ids) % np.uint64(len(POSITIONS))).astype(np.int64)
    crops = [Crop(*size, position) for size in sizes for position in POSITIONS]
    return crops, of_row * len(POSITIONS) + places[row_ids]


def _distinct(column: pa.ChunkedArray) -> tuple[Keys, NDArray[np.int64]]:
    distinct, numbers = np.unique(keys_of(column), return_inverse=True)
    return distinct, numbers


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
