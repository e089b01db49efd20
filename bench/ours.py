"""The training loop's own step, and its draws in the form the plain twin takes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.signals import StopSignal
from ..store import PairStore, load_image
from ..train.config import TrainConfig
from ..train.crops import resize_and_crop
from ..train.objective import SHOWN
from ..train.prepare import with_reference_errors
from ..train.trainer import Trainer
from .measure import Parts
from .plain_twin import Example


class Ours:
    """What `train` does between two looks, as it does it: cached latents, texts and, where asked for, reference errors."""

    def __init__(self, config: TrainConfig, store: PairStore) -> None:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        self.trainer: Any = Trainer(config, store, StopSignal())  # whose methods are replaced where parts are watched
        if config.reference_draws:
            self.trainer.data = with_reference_errors(
                self.trainer.data,
                self.trainer.denoiser,
                store,
                self.trainer.model,
                self.trainer.global_step,
                self.trainer.stop,
            )
        self.store, self.config = store, config
        self._batches = self.trainer.data.prefetch(self.trainer._starts(), config.train_batch_size)

    @property
    def modules(self) -> list[nn.Module]:
        policy = self.trainer.policy
        return [policy.unet] if policy._reference is None else [policy.unet, policy._reference]

    @property
    def optimizer(self) -> Any:
        return self.trainer.optimizer

    def step(self) -> float:
        """One optimizer step; the mean logit of its pairs."""
        row = self.trainer.step(self._batches)
        self.trainer.global_step += 1
        return float(row[SHOWN.index("margin")])

    def watch(self, parts: Parts) -> None:
        """Have the parts of a step timed from outside."""
        trainer, batches = self.trainer, self._batches
        reference, clipped, stepped = trainer.policy.reference, trainer.clip_gradients, trainer.optimizer.step

        def timed_batches() -> Iterator[Any]:
            while True:
                with parts("data"):
                    found = next(batches)
                yield found

        @contextmanager
        def timed_reference(unet: Any) -> Iterator[Any]:
            with parts("reference"), reference(unet) as one:
                yield one

        def timed_clipped() -> Tensor:
            with parts("optimizer"):
                return clipped()

        def timed_step() -> None:
            with parts("optimizer"):
                stepped()

        self._batches = timed_batches()
        trainer.policy.reference, trainer.clip_gradients, trainer.optimizer.step = (
            timed_reference,
            timed_clipped,
            timed_step,
        )

    def examples(self, first: int, count: int) -> list[Example]:
        """The pairs number first to first + count for the twin, with what is drawn for them here."""
        data = self.trainer.data
        (batch,) = data.batch(first, count)
        found = []
        for at, pair in enumerate(batch.pairs):
            frame = data.crops[pair.pair_id]
            keys = [frame.key(pair.chosen), frame.key(pair.rejected)]
            mean, std = (data.latents.rows(name, keys).float() for name in ("mean", "std"))
            paths = ((pair.chosen_path, pair.chosen), (pair.rejected_path, pair.rejected))
            pixels = [resize_and_crop(load_image(self.store.path / path, image), frame)[0] for path, image in paths]
            encoder_noise = (torch.stack([batch.chosen[at], batch.rejected[at]]) - mean) / std
            timestep = int(batch.timesteps[at])
            found.append(Example(torch.stack(pixels), pair.prompt, timestep, encoder_noise, batch.noise[at]))
        return found
