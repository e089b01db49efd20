"""How many latents a run needs: those of the pairs that its steps draw, and of validation."""

import numpy as np
from numpy.typing import NDArray

from ...models.families import Family
from ..config import TrainConfig
from ..crop_plan import pair_crops
from ..monitor.validation import validated
from ..pair_order import PairOrder
from ..pairs import Pairs

Counts = NDArray[np.float64]


def drawn_latents(pairs: Pairs, config: TrainConfig, family: Family) -> float:
    """Distinct latents of a run in one process: exact without mirroring, otherwise the expected number."""
    n_epochs, rest = divmod(_n_positions(config), len(pairs.train))
    times = np.full(len(pairs.train), float(n_epochs))
    order = PairOrder(pairs.train.table, config, family, ()).epoch(n_epochs)
    times[np.asarray(order[:rest], np.int64)] += 1
    crops = pair_crops(pairs, config, family)
    of_training = crops.plain[:, : crops.n_train].ravel()
    n_draws = np.bincount(of_training, np.tile(_distinct(times, config), 2), int(crops.plain.max()) + 1).astype(float)
    plain, mirrored = _drawn(n_draws, config)
    plain[crops.of_validation(np.array(validated(len(pairs.validation), config.seed), np.int64))] = 1
    return float(plain.sum() + mirrored.sum())


def assumed_latents(n_pairs: int, config: TrainConfig) -> float:
    """Likewise for a number of pairs, each of two images that no other pair has."""
    n_epochs, rest = divmod(_n_positions(config), n_pairs)
    times = np.repeat([n_epochs + 1.0, float(n_epochs)], [rest, n_pairs - rest])
    plain, mirrored = _drawn(_distinct(times, config), config)
    return float(2 * (plain.sum() + mirrored.sum()))


def _n_positions(config: TrainConfig) -> int:
    return config.max_train_steps * config.gradient_accumulation_steps * config.train_batch_size


def _distinct(times: Counts, config: TrainConfig) -> Counts:
    """How many different draws pairs have that are drawn that many times."""
    return np.minimum(times, config.reference_draws) if config.reference_draws else times


def _drawn(n_draws: Counts, config: TrainConfig) -> tuple[Counts, Counts]:
    """The probabilities that a crop and its mirror image are drawn; each draw is either with the same probability."""
    if not config.random_flip:
        return (n_draws > 0).astype(float), np.zeros(len(n_draws))
    either = 1 - 0.5**n_draws
    return either, either.copy()
