"""The training loop's own step, and its random draws as examples for the plain twin."""

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
from ..train.objective import BATCH_METRICS
from ..train.prepare import with_reference_errors
from ..train.trainer import Trainer
from .measure import Parts
from .plain_twin import Example


class Ours:
    """What `train` does between two validation passes, with its cached latents and prompt embeddings."""

    def __init__(self, config: TrainConfig, store: PairStore) -> None:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        self.trainer: Any = Trainer(config, store, StopSignal())  # Any: `watch` replaces some of its methods
        if config.reference_draws:
            self.trainer.feed.data = with_reference_errors(
                self.trainer.data, self.trainer.denoiser, store, self.trainer.model, self.trainer.global_step
            )
        self.trainer.feed.encode_from(0)
        self.store, self.config = store, config
        self._batches = self.trainer.feed.micro_batches(0)

    @property
    def modules(self) -> list[nn.Module]:
        policy = self.trainer.policy
        with policy.reference(policy.component) as reference:
            return [policy.component] if reference is policy.component else [policy.component, reference]

    @property
    def optimizer(self) -> Any:
        return self.trainer.optimizer

    def step(self) -> float:
        """One optimizer step; the mean logit of its pairs."""
        row = self.trainer.step(self._batches)
        self.trainer.global_step += 1
        return float(row[BATCH_METRICS.index("margin")])

    def watch(self, parts: Parts) -> None:
        """Time the parts of each step from now on."""
        trainer, batches = self.trainer, self._batches
        reference, clip_gradients, step = trainer.policy.reference, trainer.clip_gradients, trainer.optimizer.step

        def timed_batches() -> Iterator[Any]:
            while True:
                with parts("data"):
                    batch = next(batches)
                yield batch

        @contextmanager
        def timed_reference(unet: Any) -> Iterator[Any]:
            with parts("reference"), reference(unet) as model:
                yield model

        def timed_clip_gradients() -> Tensor:
            with parts("optimizer"):
                return clip_gradients()

        def timed_step() -> None:
            with parts("optimizer"):
                step()

        self._batches = timed_batches()
        trainer.policy.reference, trainer.clip_gradients, trainer.optimizer.step = (
            timed_reference,
            timed_clip_gradients,
            timed_step,
        )

    def examples(self, first: int, count: int) -> list[Example]:
        """Pairs first to first + count of the training order, with the noise and timesteps that the loop draws for them."""
        data = self.trainer.data
        (batch,) = data.batch(first, count)
        examples = []
        for at, pair in enumerate(batch.pairs):
            frame = data.crop(pair)
            keys = [frame.key(pair.chosen), frame.key(pair.rejected)]
            mean, std = (data.latents.rows(name, keys).float() for name in ("mean", "std"))
            paths = ((pair.chosen_path, pair.chosen), (pair.rejected_path, pair.rejected))
            pixels = [resize_and_crop(load_image(self.store.path / path, image), frame)[0] for path, image in paths]
            encoder_noise = (torch.stack([batch.chosen[at], batch.rejected[at]]) - mean) / std
            timestep = int(batch.timesteps[at])
            examples.append(Example(torch.stack(pixels), pair.prompt, timestep, encoder_noise, batch.noise[at]))
        return examples
