"""The order in which the training pairs come."""

from array import array
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..models.families import Family
from .config import TrainConfig
from .crop_plan import crop_sizes
from .seeds import derived_seed


class PairOrder:
    """A permutation of the pairs for each epoch, without those whose images cannot be read.

    Args:
        rows: the N training pairs.
        unusable: numbers of pairs in whose place the next usable one of the epoch comes; it may grow.
    """

    def __init__(self, rows: pa.Table, config: TrainConfig, family: Family, unusable: Collection[int]) -> None:
        self._rows, self._config, self._family, self._unusable = rows, config, family, unusable
        self._epochs: dict[int, array[int]] = {}

    def epoch(self, epoch: int) -> "array[int]":
        """Numbers of the pairs in the order of an epoch, which depends on seed and epoch.

        With buckets, pairs of one crop size are put together in groups of a batch.
        """
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(derived_seed(self._config.seed, "order", epoch))
            shuffled = torch.randperm(len(self._rows), generator=generator).numpy()
            order = self._grouped(shuffled) if self._config.aspect_buckets else shuffled
            self._epochs[epoch] = array("q", order.tobytes())  # 8 bytes a pair
            self._epochs.pop(epoch - 2, None)
        return self._epochs[epoch]

    def numbers(self, first: int, count: int) -> Iterator[int]:
        """The numbers of the pairs at positions first to first + count of the endless sequence of epochs."""
        n = len(self._rows)
        for position in range(first, first + count):
            order, at = self.epoch(position // n), position % n
            while order[at] in self._unusable:
                at = (at + 1) % n
            yield order[at]

    def _grouped(self, shuffled: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same pairs in groups of a batch of one crop size: whole groups first, in the order of their first pairs; the
        remainders share the last batches."""
        _, sizes = crop_sizes(self._rows, self._config, self._family)
        step, of_place = self._config.train_batch_size, sizes[shuffled]
        places = [np.flatnonzero(of_place == size) for size in np.unique(of_place)]
        whole = np.concatenate([alike[: len(alike) // step * step].reshape(-1, step) for alike in places])
        remainders = [alike[len(alike) // step * step :] for alike in places]
        remainders = sorted((alike for alike in remainders if len(alike)), key=lambda alike: alike[0])
        return shuffled[np.concatenate([whole[np.argsort(whole[:, 0])].ravel(), *remainders])]
