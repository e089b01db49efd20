"""Win rates and differences of scores over N pairs of images, with 95 % intervals. Pure functions."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.stats import Estimate, Floats, bootstrap, estimate_mean, estimate_share, prompt_means


@dataclass(frozen=True)
class Comparison:
    """Two models compared by one judge: a scorer, or people. Rates are 0..1, means and differences in the scorer's unit."""

    n_prompts: int
    n_pairs: int
    n_excluded: int
    """Pairs one of whose scores is missing or not finite, or that nobody labelled."""
    wins: int
    """Of the tuned model. A pair that several people labelled is a win if more of them chose it."""
    ties: int
    losses: int
    win_rate: float
    """Ties count one half; every prompt weighs the same, here and in the means."""
    win_rate_low: float
    win_rate_high: float
    """nan without an interval; see core/stats.py."""
    base_mean: float = math.nan
    """nan, as the rest, for people, who give no scores."""
    tuned_mean: float = math.nan
    diff: float = math.nan
    """tuned_mean - base_mean."""
    diff_low: float = math.nan
    diff_high: float = math.nan


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
    wins = wins_of(base, tuned)
    means = prompt_means(np.stack([wins, base, tuned], axis=1), np.asarray(prompts)[finite])  # (prompts, 3)
    resampled = bootstrap(means, n_resamples, seed)
    diff = estimate_mean(means[:, 2] - means[:, 1], resampled[:, 2] - resampled[:, 1])
    _, base_mean, tuned_mean = means.mean(axis=0).tolist()
    return _comparison(
        wins,
        int((~finite).sum()),
        len(means),
        estimate_share(means[:, 0], resampled[:, 0]),
        base_mean=base_mean,
        tuned_mean=tuned_mean,
        diff=tuned_mean - base_mean,
        diff_low=diff.low,
        diff_high=diff.high,
    )


def compare_votes(votes: Floats, prompts: NDArray[np.int64], n_resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two models by what people chose.

    Args:
        votes: share of a pair's labels that chose the tuned model's image, ties one half, (N,); nan without a label.
        prompts: which prompt each pair belongs to, (N,).

    Raises:
        ValueError: if no pair has a label.
    """
    votes = np.asarray(votes, np.float64)
    labelled = np.isfinite(votes)
    if not labelled.any():
        raise ValueError("no pair has a label")
    votes = votes[labelled]
    means = prompt_means(votes[:, None], np.asarray(prompts)[labelled])[:, 0]
    win_rate = estimate_share(means, bootstrap(means, n_resamples, seed))
    return _comparison(votes, int((~labelled).sum()), len(means), win_rate)


def wins_of(base: Floats, tuned: Floats) -> Floats:
    """1 where the tuned model's score is higher, 0 where it is lower, ½ where they are equal; (N,)."""
    return np.where(tuned > base, 1.0, np.where(tuned < base, 0.0, 0.5))


def _comparison(wins: Floats, n_excluded: int, n_prompts: int, win_rate: Estimate, **scores: float) -> Comparison:
    return Comparison(
        n_prompts=n_prompts,
        n_pairs=len(wins),
        n_excluded=n_excluded,
        wins=int((wins > 0.5).sum()),
        ties=int((wins == 0.5).sum()),
        losses=int((wins < 0.5).sum()),
        win_rate=win_rate.value,
        win_rate_low=win_rate.low,
        win_rate_high=win_rate.high,
        **scores,
    )
