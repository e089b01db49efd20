"""Win rates and differences of scores, with 95 % intervals over prompts. Pure functions; N pairs of pictures."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_Z = 1.959963984540054  # 97.5 % of the normal distribution lie below
_CHUNK = 500  # resamples at once


@dataclass(frozen=True)
class Comparison:
    """One scorer's verdict on two models. Rates are 0..1, means and differences in the scorer's unit."""

    n_prompts: int
    n_pairs: int
    n_left_out: int
    """Pairs one of whose scores is missing or not finite."""
    wins: int
    ties: int
    losses: int
    win_rate: float
    """Ties count one half; every prompt weighs the same."""
    low: float
    high: float
    base_mean: float
    tuned_mean: float
    diff: float
    """tuned_mean - base_mean."""
    diff_low: float
    diff_high: float


def compare(
    base: Floats, tuned: Floats, prompts: NDArray[np.int64], n_resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare the scores of two models' pictures, pair by pair.

    Args:
        base: scores of the one model's pictures, (N,).
        tuned: scores of the other's, (N,).
        prompts: which prompt each pair belongs to, (N,).

    Raises:
        ValueError: where no pair has two finite scores; an empty set has no win rate.
    """
    base, tuned = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    finite = np.isfinite(base) & np.isfinite(tuned)
    if not finite.any():
        raise ValueError("no pair has two finite scores")
    base, tuned, kept = base[finite], tuned[finite], np.asarray(prompts)[finite]
    wins = np.where(tuned > base, 1.0, np.where(tuned < base, 0.0, 0.5))
    _, groups = np.unique(kept, return_inverse=True)
    columns = np.stack([_by_prompt(values, groups) for values in (wins, base, tuned)], axis=1)  # (prompts, 3)
    rate, base_mean, tuned_mean = columns.mean(0).tolist()
    resampled = _resampled(columns, n_resamples, seed)
    low, high = _interval(resampled[:, 0])
    diff_low, diff_high = _interval(resampled[:, 2] - resampled[:, 1])
    if np.ptp(columns[:, 0]) == 0:  # all prompts agree: resampling shows no spread, though n is finite
        low, high = wilson(rate, len(columns))
    return Comparison(
        n_prompts=len(columns),
        n_pairs=len(wins),
        n_left_out=int((~finite).sum()),
        wins=int((wins == 1).sum()),
        ties=int((wins == 0.5).sum()),
        losses=int((wins == 0).sum()),
        win_rate=rate,
        low=low,
        high=high,
        base_mean=base_mean,
        tuned_mean=tuned_mean,
        diff=tuned_mean - base_mean,
        diff_low=diff_low,
        diff_high=diff_high,
    )


def wilson(rate: float, n: int) -> tuple[float, float]:
    """The Wilson score interval of a share, 95 %."""
    centre = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _by_prompt(values: Floats, groups: NDArray[np.int64]) -> Floats:
    return np.bincount(groups, weights=values) / np.bincount(groups)


def _resampled(columns: Floats, n_resamples: int, seed: int) -> Floats:
    """Means of the columns over prompts drawn with replacement, (n_resamples, columns)."""
    rng = np.random.default_rng(seed)
    n = len(columns)
    means = [
        columns[rng.integers(n, size=(min(_CHUNK, n_resamples - at), n))].mean(1)
        for at in range(0, n_resamples, _CHUNK)
    ]
    return np.concatenate(means)


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high
