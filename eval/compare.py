"""Win rates and differences of scores over N pairs of images, with 95 % intervals. Pure functions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.stats import Floats, bootstrap, estimate_mean, estimate_share, prompt_means


@dataclass(frozen=True)
class Comparison:
    """Two models compared by one scorer. Rates are 0..1, means and differences in the scorer's unit."""

    n_prompts: int
    n_pairs: int
    n_excluded: int
    """Pairs one of whose scores is missing or not finite."""
    wins: int
    ties: int
    losses: int
    win_rate: float
    """Ties count one half; every prompt weighs the same, here and in the means."""
    win_rate_low: float
    win_rate_high: float
    """nan without an interval; see core/stats.py."""
    base_mean: float
    tuned_mean: float
    diff: float
    """tuned_mean - base_mean."""
    diff_low: float
    diff_high: float


def compare(
    base: Floats, tuned: Floats, prompts: NDArray[np.int64], n_resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare the scores of two models' images, pair by pair.

    Args:
        base: scores of the baseline's images, (N,).
        tuned: scores of the tuned model's images, (N,).
        prompts: which prompt each pair belongs to, (N,).

    Raises:
        ValueError: if no pair has two finite scores; an empty set has no win rate.
    """
    base, tuned = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    finite = np.isfinite(base) & np.isfinite(tuned)
    if not finite.any():
        raise ValueError("no pair has two finite scores")
    base, tuned = base[finite], tuned[finite]
    wins = np.where(tuned > base, 1.0, np.where(tuned < base, 0.0, 0.5))
    means = prompt_means(np.stack([wins, base, tuned], axis=1), np.asarray(prompts)[finite])  # (prompts, 3)
    resampled = bootstrap(means, n_resamples, seed)
    win_rate = estimate_share(means[:, 0], resampled[:, 0])
    diff = estimate_mean(means[:, 2] - means[:, 1], resampled[:, 2] - resampled[:, 1])
    _, base_mean, tuned_mean = means.mean(axis=0).tolist()
    return Comparison(
        n_prompts=len(means),
        n_pairs=len(wins),
        n_excluded=int((~finite).sum()),
        wins=int((wins == 1).sum()),
        ties=int((wins == 0.5).sum()),
        losses=int((wins == 0).sum()),
        win_rate=win_rate.value,
        win_rate_low=win_rate.low,
        win_rate_high=win_rate.high,
        base_mean=base_mean,
        tuned_mean=tuned_mean,
        diff=tuned_mean - base_mean,
        diff_low=diff.low,
        diff_high=diff.high,
    )
