"""The training pairs in an endless sequence, each with everything that is drawn for it.

What is drawn for a pair follows from the seed and the pair's position in the sequence alone: not from batch size, accumulation,
number of processes or threads, or where a run was interrupted.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

import torch
from torch import Tensor

from ..core.ids import canonical, content_id
from ..models.family import Family
from .cache import EMPTY_PROMPT_ID, TensorCache
from .config import TrainConfig
from .crops import CROPS, Frame, bucket
from .pairs import Pair, Pairs


@dataclass(frozen=True)
class Batch:
    """B pairs of one frame's size with everything that is drawn for them, on the CPU, float32."""

    pairs: list[Pair]
    chosen: Tensor  # (B, C, h, w), scaled latents
    rejected: Tensor  # (B, C, h, w)
    hidden: Tensor  # (B, tokens, width)
    pooled: Tensor | None  # (B, width), for SDXL
    time_ids: Tensor | None  # (2B, 6 or 5), chosen images first, for SDXL
    timesteps: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w), the target of both images
    input_noise: Tensor | None  # (B, C, h, w), what is mixed in instead, where the input is perturbed
    ref_chosen: Tensor | None = None  # (B,), the reference's errors where they are cached
    ref_rejected: Tensor | None = None  # (B,)


@dataclass(frozen=True)
class Draw:
    """What is drawn for one pair, all of it from one seed."""

    pair: Pair
    seed: int
    timestep: int | None = None
    """A fixed one, for validation, where nothing is mirrored and no prompt is dropped."""
    reference: UUID | None = None
    """Row of the reference's errors in their cache."""


@dataclass(frozen=True)
class TrainingData:
    """Cached pairs and the order they come in."""

    pairs: Pairs
    latents: TensorCache
    texts: TensorCache
    config: TrainConfig
    family: Family
    reference: TensorCache | None = None
    """The reference's errors of the draws that return, where they are cached."""

    def order(self, epoch: int) -> list[int]:
        """The training list of an epoch: a permutation that depends on seed and epoch.

        With buckets, pairs of one frame size stand together in groups of a batch.
        """
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "order", epoch))
            shuffled = torch.randperm(len(self.pairs.train), generator=generator).tolist()
            self._orders[epoch] = self._grouped(shuffled) if self.config.aspect_buckets else shuffled
            self._orders.pop(epoch - 2, None)
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> dict[int, list[int]]:
        return {}

    def _grouped(self, shuffled: list[int]) -> list[int]:
        by_size: dict[tuple[int, int], list[int]] = {}
        sizes = [_size(self.frames[pair.pair_id]) for pair in self.pairs.train]
        for at in shuffled:
            by_size.setdefault(sizes[at], []).append(at)
        step = self.config.train_batch_size
        groups = [alike[at : at + step] for alike in by_size.values() for at in range(0, len(alike), step)]
        # whole groups first, in the order of their first pairs; the remainders share the last batches
        rank = {at: position for position, at in enumerate(shuffled)}
        groups.sort(key=lambda group: (len(group) < step, rank[group[0]]))
        return [at for group in groups for at in group]

    def draws(self, first: int, count: int) -> list[Draw]:
        """Those of the pairs number first to first + count of the sequence."""
        n, config = len(self.pairs.train), self.config
        found = []
        for at in range(first, first + count):
            pair = self.pairs.train[self.order(at // n)[at % n]]
            if config.reference_draws:
                turn = derived_seed(config.seed, "turn", at) % config.reference_draws
                found.append(self.fixed(pair, turn))
            else:
                found.append(Draw(pair, derived_seed(config.seed, "pair", at)))
        return found

    def trained_prompts(self, n: int) -> set[UUID]:
        """Prompts of the first n pairs of the sequence."""
        pairs = self.pairs.train
        return {pair.prompt_id for pair in (pairs if n >= len(pairs) else (pairs[at] for at in self.order(0)[:n]))}

    def fixed(self, pair: Pair, turn: int) -> Draw:
        """One of the draws of a pair that return."""
        parts = (self.config.seed, "fixed", pair.pair_id, pair.labeler, pair.chosen, turn)
        return Draw(pair, derived_seed(*parts), reference=content_id(canonical([str(part) for part in parts]).encode()))

    def every_fixed(self) -> list[Draw]:
        return [self.fixed(pair, turn) for pair in self.pairs.train for turn in range(self.config.reference_draws)]

    def batch(self, first: int, count: int) -> list[Batch]:
        """Pairs number first to first + count of the sequence; several batches where their frames differ in size."""
        return self.drawn(self.draws(first, count))

    def drawn(self, draws: Sequence[Draw]) -> list[Batch]:
        sizes = [self.frames[draw.pair.pair_id] for draw in draws]
        return [
            self._batch([draw for draw, frame in zip(draws, sizes, strict=True) if _size(frame) == size])
            for size in dict.fromkeys(map(_size, sizes))
        ]

    @cached_property
    def frames(self) -> dict[UUID, Frame]:
        """The frame of each pair, not mirrored."""
        return frames_of(self.pairs, self.config, self.family)

    def _batch(self, draws: Sequence[Draw]) -> Batch:
        config, allowed = self.config, self.family.timesteps
        texts, frames, timesteps, generators = [], [], [], []
        for draw in draws:
            generator = torch.Generator().manual_seed(draw.seed)
            flip, drop = torch.rand(2, generator=generator).tolist()
            timestep = allowed[int(torch.randint(len(allowed), (), generator=generator))]
            training = draw.timestep is None
            # one frame for both images: a pair must differ only by what was preferred
            frame = self.frames[draw.pair.pair_id]
            mirrored = training and config.random_flip and flip < 0.5
            frames.append(Frame(frame.height, frame.width, frame.place, mirrored))
            texts.append(
                EMPTY_PROMPT_ID if training and drop < config.proportion_empty_prompts else draw.pair.prompt_id
            )
            timesteps.append(timestep if draw.timestep is None else draw.timestep)
            generators.append(generator)
        keys = [
            [frame.key(image) for frame, image in zip(frames, images, strict=True)]
            for images in ([draw.pair.chosen for draw in draws], [draw.pair.rejected for draw in draws])
        ]
        (chosen, chosen_std), (rejected, rejected_std) = (
            (self.latents.rows("mean", side).float(), self.latents.rows("std", side).float()) for side in keys
        )
        # five draws for each pair: two samples of the encoder, the noise, its offset, its perturbation
        drawn = torch.stack([torch.randn((5, *chosen.shape[1:]), generator=generator) for generator in generators])
        noise = drawn[:, 2] + config.noise_offset * drawn[:, 3, :, :1, :1]
        pooled = time_ids = ref_chosen = ref_rejected = None
        if self.family.is_xl:
            pooled = self.texts.rows("pooled", texts).float()
            size = (frames[0].height, frames[0].width)
            told = self.latents.rows("frame", keys[0] + keys[1]).tolist()
            time_ids = torch.tensor([self.family.time_ids(frame, size) for frame in told], dtype=torch.float32)
        if self.reference is not None and draws[0].reference is not None:
            rows = [draw.reference for draw in draws if draw.reference is not None]
            ref_chosen, ref_rejected = self.reference.rows("errors", rows).unbind(1)
        return Batch(
            [draw.pair for draw in draws],
            chosen + chosen_std * drawn[:, 0],
            rejected + rejected_std * drawn[:, 1],
            self.texts.rows("hidden", texts).float(),
            pooled,
            time_ids,
            torch.tensor(timesteps),
            noise,
            noise + config.input_perturbation * drawn[:, 4] if config.input_perturbation else None,
            ref_chosen,
            ref_rejected,
        )

    def ahead(self, starts: Iterator[int], count: int) -> Generator[list[Batch]]:
        """The batches that begin at those positions, prepared by threads while the model is at work."""
        workers = self.config.dataloader_num_workers
        if not workers:
            yield from (self.batch(start, count) for start in starts)
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting: list[Future[list[Batch]]] = []
            try:
                for start in starts:
                    waiting.append(pool.submit(self.batch, start, count))
                    if len(waiting) > workers:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()


def frames_of(pairs: Pairs, config: TrainConfig, family: Family) -> dict[UUID, Frame]:
    """The frame of each pair, not mirrored: the resolution squared, or the bucket nearest to its images."""
    resolution = config.resolution or family.resolution
    found = {}
    for pair in pairs.train + pairs.validation:
        height, width = resolution, resolution
        if config.aspect_buckets:
            height, width = bucket(*pair.size, resolution, family.frame_step)
        place = 0.5
        if config.random_crop:
            place = CROPS[derived_seed(config.seed, "crop", pair.pair_id) % len(CROPS)]
        found[pair.pair_id] = Frame(height, width, place)
    return found


def image_frames(pairs: Pairs, config: TrainConfig, family: Family) -> dict[UUID, set[Frame]]:
    """Every frame in which an image will be asked for."""
    of_pair, found = frames_of(pairs, config, family), {}
    for part, training in ((pairs.train, True), (pairs.validation, False)):
        for pair in part:
            frame = of_pair[pair.pair_id]
            asked = {frame}
            if training and config.random_flip:
                asked.add(Frame(frame.height, frame.width, frame.place, mirrored=True))
            for image in (pair.chosen, pair.rejected):
                found.setdefault(image, set()).update(asked)
    return found


def derived_seed(*parts: object) -> int:
    """A seed that follows from its parts alone, below 2**63."""
    return content_id(canonical([str(part) for part in parts]).encode()).int >> 65


def _size(frame: Frame) -> tuple[int, int]:
    return frame.height, frame.width
