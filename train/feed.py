"""The micro-batches of a training, prepared while the model computes, and the encoding of their latents before."""

from collections.abc import Generator, Iterator

from .batch import Batch
from .config import TrainConfig
from .data import TrainingData
from .ranks import Ranks
from .tensor_cache import SHARD

BLOCK = SHARD  # latents that each process encodes at once: a file of the cache


class Feed:
    """The training data, step by step.

    Args:
        pin: put batches into pinned memory, for a GPU.
    """

    def __init__(self, data: TrainingData, config: TrainConfig, ranks: Ranks, *, pin: bool = False) -> None:
        self.data, self._config, self._ranks, self._pin = data, config, ranks, pin
        self._encoded_until = 0  # the first step whose latents may be missing

    def encode_from(self, step: int, show: bool = True) -> None:
        """Encode the latents of a step and those that follow it, as many as a file holds, unless that was done.

        Args:
            show: a progress bar.

        Raises:
            Interrupted: after a signal.
        """
        if step < self._encoded_until:
            return
        encoder, per_step, end = self.data.encoder, self._pairs_per_step, self._config.max_train_steps
        if encoder is not None and not self._config.reference_draws:
            n_rows = BLOCK * self._ranks.world * encoder.n_sizes
            end = min(end, step + max(1, n_rows // (2 * per_step)))
        self.data.encode(step * per_step, end * per_step, show)
        self._encoded_until = end
        if encoder is not None and end == self._config.max_train_steps:
            encoder.release()

    @property
    def _pairs_per_step(self) -> int:
        return self._ranks.world * self._config.gradient_accumulation_steps * self._config.train_batch_size

    def micro_batches(self, step: int) -> Generator[list[Batch]]:
        """Those of this process from a step on, prepared ahead as far as their latents are there."""
        while step < self._config.max_train_steps:
            self.encode_from(step, show=False)
            end = self._encoded_until
            yield from self.data.prefetch(self._starts(step, end), self._config.train_batch_size, pin=self._pin)
            step = end

    def _starts(self, step: int, end: int) -> Iterator[int]:
        """The position of the first pair of each micro-batch of this process in these steps."""
        n = self._config.gradient_accumulation_steps
        for micro in range(step * n, end * n):
            yield (micro * self._ranks.world + self._ranks.rank) * self._config.train_batch_size
