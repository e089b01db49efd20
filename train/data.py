"""The training pairs in an endless sequence, each with everything that is sampled for it.

What is sampled for a pair follows from the seed and the pair's position in the sequence alone: not from batch size,
accumulation, number of processes or threads, or where a run was interrupted.
"""

from array import array
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.id_columns import IdColumn, keys_of
from ..core.ids import canonical, content_id
from ..models.families import Family
from ..models.noise import Noise
from .batch import Batch, padded
from .cache import CROP_COORDINATES, EMPTY_PROMPT_ID, LatentCache, TensorCache
from .config import MAX_TIMESTEP, TrainConfig
from .crop_plan import crop_of, uses_any
from .crops import Crop
from .pair_order import PairOrder
from .pairs import Pair, Pairs
from .seeds import derived_seed

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Sample:
    """What is sampled for one pair follows from one seed."""

    pair: Pair
    seed: int
    quantile: float
    """Of the timestep among those that are trained on, 0..1; for the kinds of noise that spread them evenly."""
    timestep: float | None = None
    """A fixed one, for validation, in which nothing is mirrored and no prompt is dropped."""
    draw_id: UUID | None = None
    """Row of the reference's errors in their cache."""


@dataclass(frozen=True)
class TrainingData:
    """Pairs and the order they come in, with their latents as far as they were asked for."""

    pairs: Pairs
    latents: TensorCache
    prompt_embeds: TensorCache
    config: TrainConfig
    family: Family
    reference_errors: TensorCache | None = None
    """Of the cached draws, if there are any."""

    encoder: LatentCache | None = None
    """Of the latents that are not there; None if all are."""
    unusable: set[int] = field(default_factory=set)
    """Numbers of training pairs whose images cannot be read."""

    @cached_property
    def pair_order(self) -> PairOrder:
        return PairOrder(self.pairs.train.table, self.config, self.family, self.unusable)

    def order(self, epoch: int) -> "array[int]":
        """Numbers of the training pairs in the order of an epoch."""
        return self.pair_order.epoch(epoch)

    def samples(self, first: int, count: int) -> list[Sample]:
        """Those of pairs number first to first + count of the sequence."""
        config, samples = self.config, []
        for at, number in enumerate(self.pair_order.numbers(first, count), first):
            pair = self.pairs.train[number]
            if config.reference_draws:
                samples.append(self.cached_draw(pair, self._draw_index(at)))
            else:
                samples.append(Sample(pair, derived_seed(config.seed, "pair", at), spread(config.seed, at)))
        return samples

    def _draw_index(self, at: int) -> int:
        return derived_seed(self.config.seed, "turn", at) % self.config.reference_draws

    def trained_prompts(self, n: int) -> set[UUID]:
        """Prompts of the first n pairs of the sequence, and of those that are skipped among them."""
        prompts = keys_of(self.pairs.train.table["prompt_id"])
        while 0 < n < len(prompts) and self.order(0)[n - 1] in self.unusable:  # the next usable one came instead
            n += 1
        return set(IdColumn(np.unique(prompts if n >= len(prompts) else prompts[self.order(0)[:n]])))

    def cached_draw(self, pair: Pair, draw_index: int) -> Sample:
        """One of the pair's draws whose reference errors are cached."""
        parts = (self.config.seed, "fixed", pair.pair_id, pair.labeler, pair.chosen, draw_index)
        draw_id = content_id(canonical([str(part) for part in parts]).encode())
        within = derived_seed(*parts, "quantile") / 2**63
        return Sample(pair, derived_seed(*parts), (draw_index + within) / self.config.reference_draws, draw_id=draw_id)

    def cached_draws(self, first: int, end: int) -> list[tuple[int, Sample]]:
        """The draws of pairs number first to end of the sequence, each once, with the number of its pair."""
        drawn: set[tuple[int, int]] = set()
        n_all = len(self.pairs.train) * self.config.reference_draws
        for at, number in enumerate(self.pair_order.numbers(first, end - first), first):
            drawn.add((number, self._draw_index(at)))
            if len(drawn) == n_all:
                break
        return [
            (number, self.cached_draw(self.pairs.train[number], draw_index)) for number, draw_index in sorted(drawn)
        ]

    def encode(self, first: int, end: int, show: bool = True) -> None:
        """Encode the latents of pairs number first to end of the sequence that are not cached. Every process must make the
        same call.

        Args:
            show: a progress bar.

        Raises:
            BadDataError: if many images cannot be used; the pairs of a few are replaced by others.
            Interrupted: after a signal; what was encoded is kept.
        """
        encoder = self.encoder
        if encoder is None:
            return
        while lost := encoder.fill(encoder.crops.of_training(*self._drawn(first, end)), show):
            self.unusable.update(np.flatnonzero(uses_any(self.pairs.train.table, lost)).tolist())
        encoder.ready = range(first, end)

    def _drawn(self, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Numbers of the pairs at these positions, and whether each is mirrored."""
        config = self.config
        if config.reference_draws:
            seeds = [(number, draw.seed) for number, draw in self.cached_draws(first, end)]
        else:
            numbers = enumerate(self.pair_order.numbers(first, end - first), first)
            seeds = [(number, derived_seed(config.seed, "pair", at)) for at, number in numbers]
        mirrored = [config.random_flip and self._is_mirrored(seed) for _, seed in seeds]
        return np.array([number for number, _ in seeds], np.int64), np.array(mirrored, np.bool_)

    def _is_mirrored(self, seed: int) -> bool:
        flip, _ = _flip_and_drop(torch.Generator().manual_seed(seed))
        return flip < 0.5

    def batch(self, first: int, count: int) -> list[Batch]:
        """Pairs number first to first + count of the sequence; several batches if their crops differ in size."""
        encoder = self.encoder
        if encoder is not None and encoder.ranks.world == 1 and not encoder.is_ready(first, first + count):
            self.encode(first, first + count)
        return self.sample_batch(self.samples(first, count))

    def sample_batch(self, samples: Sequence[Sample]) -> list[Batch]:
        """Batches of these samples, one for each crop size."""
        sizes = [self.crop(sample.pair).size for sample in samples]
        return [
            self._batch([sample for sample, other in zip(samples, sizes, strict=True) if other == size])
            for size in dict.fromkeys(sizes)
        ]

    @cached_property
    def noise(self) -> Noise:
        """How images are noised, by the family and the settings."""
        return noise_of(self.family, self.config)

    def crop(self, pair: Pair) -> Crop:
        """The crop of a pair, not mirrored."""
        return crop_of(pair, self.config, self.family)

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        config = self.config
        prompts, crops, timesteps, generators = [], [], [], []
        for sample in samples:
            generator = torch.Generator().manual_seed(sample.seed)
            flip, drop = _flip_and_drop(generator)
            timestep = self.noise.timestep(generator, sample.quantile)
            training = sample.timestep is None
            # one crop for both images: a pair must differ only by what was preferred
            crop = self.crop(sample.pair)
            crops.append(replace(crop, mirrored=training and config.random_flip and flip < 0.5))
            dropped = training and drop < config.proportion_empty_prompts
            prompts.append(EMPTY_PROMPT_ID if dropped else sample.pair.prompt_id)
            timesteps.append(timestep if sample.timestep is None else sample.timestep)
            generators.append(generator)
        keys = [
            [crop.key(image) for crop, image in zip(crops, images, strict=True)]
            for images in ([sample.pair.chosen for sample in samples], [sample.pair.rejected for sample in samples])
        ]
        (chosen, chosen_std), (rejected, rejected_std) = (
            (self.latents.rows("mean", side).float(), self.latents.rows("std", side).float()) for side in keys
        )
        # five fields for each pair: two samples of the encoder, the noise, its offset, its perturbation
        sampled = torch.stack([torch.randn((5, *chosen.shape[1:]), generator=generator) for generator in generators])
        noise = sampled[:, 2] + config.noise_offset * sampled[:, 3, :, :1, :1]
        embeds = padded({name: self.prompt_embeds.ragged(name, prompts) for name in self.family.prompt_tensors})
        conditions = self.family.conditions(
            {name: torch.cat([tensor, tensor]) for name, tensor in embeds.items()},
            self.latents.rows(CROP_COORDINATES, keys[0] + keys[1]),
            crops[0].size,
        )
        ref_chosen = ref_rejected = None
        if self.reference_errors is not None and samples[0].draw_id is not None:
            rows = [sample.draw_id for sample in samples if sample.draw_id is not None]
            ref_chosen, ref_rejected = self.reference_errors.rows("errors", rows).unbind(1)
        return Batch(
            [sample.pair for sample in samples],
            chosen + chosen_std * sampled[:, 0],
            rejected + rejected_std * sampled[:, 1],
            conditions,
            torch.tensor(timesteps),
            noise,
            noise + config.input_perturbation * sampled[:, 4] if config.input_perturbation else None,
            ref_chosen,
            ref_rejected,
        )

    def prefetch(self, starts: Iterator[int], count: int, *, pin: bool = False) -> Generator[list[Batch]]:
        """The batches that begin at those positions, prepared by threads while the model computes.

        Args:
            pin: put them into pinned memory, for a GPU.
        """
        workers = self.config.dataloader_num_workers

        def prepared(start: int) -> list[Batch]:
            batches = self.batch(start, count)
            return [batch.pinned() for batch in batches] if pin else batches

        if not workers:
            yield from map(prepared, starts)
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting: list[Future[list[Batch]]] = []
            try:
                for start in starts:
                    waiting.append(pool.submit(prepared, start))
                    if len(waiting) > workers:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()


def _flip_and_drop(generator: torch.Generator) -> tuple[float, float]:
    """The first two numbers of a pair's draw: below the half it is mirrored, and below the proportion its prompt is empty."""
    flip, drop = torch.rand(2, generator=generator).tolist()
    return flip, drop


def noise_of(family: Family, config: TrainConfig) -> Noise:
    """
    Raises:
        UsageError: if a setting is for another kind of model.
    """
    density: Any = config.timestep_density
    noise = family.noise(density, config.sigma_shift)
    if config.min_timestep is None and config.max_timestep is None:
        return noise
    return noise.within(config.min_timestep or 0, MAX_TIMESTEP if config.max_timestep is None else config.max_timestep)


def spread(seed: int, at: int) -> float:
    """Number `at` of a sequence in 0..1 any stretch of which is spread evenly: multiples of the golden ratio, from a start that
    depends on the seed."""
    start = derived_seed(seed, "quantile") / 2**63
    return (start + at * GOLDEN) % 1.0
