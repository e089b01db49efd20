"""The training pairs in an endless sequence, each with everything that is sampled for it.

What is sampled for a pair follows from the seed and the pair's position in the sequence alone: not from batch size,
accumulation, number of processes or threads, or where a run was interrupted.
"""

from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.id_columns import IdColumn, keys_of
from ..core.ids import canonical, content_id
from ..models.families import Family
from ..models.noise import Noise
from .cache import CROP_COORDINATES, EMPTY_PROMPT_ID, TensorCache
from .config import MAX_TIMESTEP, TrainConfig
from .crop_plan import crop_of, crop_sizes
from .crops import Crop
from .pairs import Pair, Pairs
from .seeds import derived_seed
from .transfer import to_device

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Batch:
    """B pairs of one crop size with everything that is sampled for them, float32."""

    pairs: list[Pair]
    chosen: Tensor  # (B, C, h, w), scaled latents
    rejected: Tensor  # (B, C, h, w)
    conditions: dict[str, Tensor]  # each (2B, ...), chosen images first: what the family's predict takes
    timesteps: Tensor  # (B,), integers of a diffusion model, 1000 sigma of a flow-matching one
    noise: Tensor  # (B, C, h, w), the same for both images
    input_noise: Tensor | None = None  # (B, C, h, w), added to the latents instead, if the input is perturbed
    ref_chosen: Tensor | None = None  # (B,), the reference's errors, if they are cached
    ref_rejected: Tensor | None = None  # (B,)

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        return self._with_each(lambda tensor: to_device(tensor, device))

    def pinned(self) -> "Batch":
        """The batch in memory that a GPU copies from while it computes, and other work goes on."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **changed, conditions={name: change(value) for name, value in self.conditions.items()})


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
    """Cached pairs and the order they come in."""

    pairs: Pairs
    latents: TensorCache
    prompt_embeds: TensorCache
    config: TrainConfig
    family: Family
    reference_errors: TensorCache | None = None
    """Of the cached draws, if there are any."""

    def order(self, epoch: int) -> "array[int]":
        """The training pairs of an epoch: a permutation that depends on seed and epoch.

        With buckets, pairs of one crop size are put together in groups of a batch.
        """
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "order", epoch))
            shuffled = torch.randperm(len(self.pairs.train), generator=generator).numpy()
            order = self._grouped(shuffled) if self.config.aspect_buckets else shuffled
            self._orders[epoch] = array("q", order.tobytes())  # 8 bytes a pair
            self._orders.pop(epoch - 2, None)
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> "dict[int, array[int]]":
        return {}

    def _grouped(self, shuffled: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same pairs in groups of a batch of one crop size: whole groups first, in the order of their first pairs; the
        remainders share the last batches."""
        _, sizes = crop_sizes(self.pairs.train.table, self.config, self.family)
        step, of_place = self.config.train_batch_size, sizes[shuffled]
        places = [np.flatnonzero(of_place == size) for size in np.unique(of_place)]
        whole = np.concatenate([alike[: len(alike) // step * step].reshape(-1, step) for alike in places])
        remainders = [alike[len(alike) // step * step :] for alike in places]
        remainders = sorted((alike for alike in remainders if len(alike)), key=lambda alike: alike[0])
        return shuffled[np.concatenate([whole[np.argsort(whole[:, 0])].ravel(), *remainders])]

    def samples(self, first: int, count: int) -> list[Sample]:
        """Those of pairs number first to first + count of the sequence."""
        n, config = len(self.pairs.train), self.config
        samples = []
        for at in range(first, first + count):
            pair = self.pairs.train[self.order(at // n)[at % n]]
            if config.reference_draws:
                draw_index = derived_seed(config.seed, "turn", at) % config.reference_draws
                samples.append(self.cached_draw(pair, draw_index))
            else:
                samples.append(Sample(pair, derived_seed(config.seed, "pair", at), spread(config.seed, at)))
        return samples

    def trained_prompts(self, n: int) -> set[UUID]:
        """Prompts of the first n pairs of the sequence."""
        prompts = keys_of(self.pairs.train.table["prompt_id"])
        return set(IdColumn(np.unique(prompts if n >= len(prompts) else prompts[self.order(0)[:n]])))

    def cached_draw(self, pair: Pair, draw_index: int) -> Sample:
        """One of the pair's draws whose reference errors are cached."""
        parts = (self.config.seed, "fixed", pair.pair_id, pair.labeler, pair.chosen, draw_index)
        draw_id = content_id(canonical([str(part) for part in parts]).encode())
        within = derived_seed(*parts, "quantile") / 2**63
        return Sample(pair, derived_seed(*parts), (draw_index + within) / self.config.reference_draws, draw_id=draw_id)

    def cached_draws(self) -> list[Sample]:
        n_draws = self.config.reference_draws
        return [self.cached_draw(pair, draw_index) for pair in self.pairs.train for draw_index in range(n_draws)]

    def batch(self, first: int, count: int) -> list[Batch]:
        """Pairs number first to first + count of the sequence; several batches if their crops differ in size."""
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
            flip, drop = torch.rand(2, generator=generator).tolist()
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


def padded(rows: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Stack the rows of each name, float32; rows of different lengths are padded with zeros and get a mask, NAME_mask."""
    stacked: dict[str, Tensor] = {}
    for name, tensors in rows.items():
        if len({tensor.shape for tensor in tensors}) == 1:
            stacked[name] = torch.stack(list(tensors)).float()
            continue
        lengths = torch.tensor([len(tensor) for tensor in tensors])
        stacked[name] = torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True).float()
        stacked[f"{name}_mask"] = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return stacked


def spread(seed: int, at: int) -> float:
    """Number `at` of a sequence in 0..1 any stretch of which is spread evenly: multiples of the golden ratio, from a start that
    depends on the seed."""
    start = derived_seed(seed, "quantile") / 2**63
    return (start + at * GOLDEN) % 1.0
