"""The order in which the training pairs come."""

from array import array
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..models.families import Family
from ..store import BadDataError
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
        kept = self._epochs.get(epoch)  # threads that prepare batches are in several epochs if pairs are few
        if kept is None:
            generator = torch.Generator().manual_seed(derived_seed(self._config.seed, "order", epoch))
            shuffled = torch.randperm(len(self._rows), generator=generator).numpy()
            order = self._grouped(shuffled) if self._config.aspect_buckets else shuffled
            kept = self._epochs[epoch] = array("q", order.tobytes())  # 8 bytes a pair
            self._epochs.pop(epoch - 2, None)
        return kept

    def numbers(self, first: int, count: int) -> Iterator[int]:
        """The numbers of the pairs at positions first to first + count of the endless sequence of epochs.

        Raises:
            BadDataError: if no pair is usable.
        """
        n = len(self._rows)
        for position in range(first, first + count):
            order, at = self.epoch(position // n), position % n
            if len(self._unusable) == n:  # an image that all have in common is enough
                raise BadDataError(
                    "each training pair has an image that cannot be used; `prefloop store check` names them"
                )
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
