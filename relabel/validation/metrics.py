"""How well a scorer predicts a labeler's choices. Pure functions over N labelled pairs.

preferred is 1 if a was chosen, 0 if b, ½ for a tie; difference is the score of a minus the score of b. Accuracies weigh every
prompt the same (core/stats.py); calibration is over pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.stats import Estimate, Floats, bootstrap, estimate_share, percentile_interval, prompt_means

N_BINS = 10


@dataclass(frozen=True)
class Decided:
    """Over the pairs that the labeler decided. Two equal scores count ½ for either image."""

    n: int
    n_prompts: int
    accuracy: Estimate
    """Share of them in which the scorer prefers the image that was chosen; ½ by chance."""
    kappa: Estimate | None
    """Cohen's kappa: 0 by chance, 1 at most. None if both always choose the same side."""


@dataclass(frozen=True)
class TieAware:
    """Over all pairs of the prompts that the tie band was not chosen on."""

    n: int
    n_prompts: int
    accuracy: Estimate
    """A match counts 1, a tie on one side only ½."""
    always_tie: float
    """Accuracy of calling every pair a tie."""
    chance: float
    """Accuracy of the scorer's own choices and ties, dealt out at random."""
    tie_band: float
    """Differences up to this were taken for ties, in the scorer's unit."""


@dataclass(frozen=True)
class Bin:
    """Pairs that the scorer is about equally sure of."""

    n: int
    confidence: float
    """Mean probability that it gives to the image it prefers, ½..1."""
    observed: float
    """Share of them in which the labeler chose that image; ties count one half."""


def tie_aware_accuracy(preferred: Floats, difference: Floats, tie_band: float) -> Floats:
    """PickScore's tie-aware accuracy, arXiv 2305.01569, of each pair: 1, ½ or 0; (N,)."""
    return 1 - np.abs(_predicted(difference, tie_band) - preferred)


def _predicted(difference: Floats, tie_band: float) -> Floats:
    return np.where(np.abs(difference) <= tie_band, 0.5, np.where(difference > 0, 1.0, 0.0))


def best_tie_band(preferred: Floats, difference: Floats) -> float:
    """The band with the highest accuracy, the narrowest of several; 0 if there are no pairs."""
    if not len(difference):
        return 0.0
    size = np.abs(difference)
    order = np.argsort(size, kind="stable")
    decided = tie_aware_accuracy(preferred, difference, 0.0)[order]
    tied = (1 - np.abs(0.5 - preferred))[order]
    bands = np.concatenate([[0.0], size[order]])
    gained = np.concatenate([[0.0], np.cumsum(tied - decided)])  # by taking the first k for ties
    complete = np.append(bands[1:] != bands[:-1], True)  # a band takes all pairs of its size
    return float(bands[complete][np.argmax(gained[complete])])


def decided(preferred: Floats, difference: Floats, prompt: NDArray[np.str_]) -> Decided | None:
    """None if the labeler decided no pair."""
    chosen = preferred != 0.5
    if not chosen.any():
        return None
    preferred, predicted = preferred[chosen], _predicted(difference[chosen], 0.0)
    matches = 1 - np.abs(predicted - preferred)
    means = prompt_means(np.stack([matches, predicted, preferred], axis=1), prompt[chosen])  # (prompts, 3)
    resampled = bootstrap(means)
    accuracy = estimate_share(means[:, 0], resampled[:, 0])
    return Decided(int(chosen.sum()), len(means), accuracy, _kappa_estimate(means, resampled, accuracy))


def _kappa_estimate(means: Floats, resampled: Floats, accuracy: Estimate) -> Estimate | None:
    """
    Args:
        means: of matches, predicted and preferred, of each prompt, (P, 3).
        resampled: their bootstrap, (R, 3).
    """
    overall = means.mean(axis=0)
    chance = float(_chance(overall))
    if chance == 1:
        return None
    kappa = float((overall[0] - chance) / (1 - chance))
    if accuracy.has_interval and np.ptp(means[:, 0]) == 0:  # as for the accuracy: resampling shows no spread
        return Estimate(kappa, *((end - chance) / (1 - chance) for end in (accuracy.low, accuracy.high)))
    with np.errstate(divide="ignore", invalid="ignore"):
        kappas = (resampled[:, 0] - _chance(resampled)) / (1 - _chance(resampled))
    return Estimate(kappa, *percentile_interval(kappas[np.isfinite(kappas)], len(means)))


def _chance(means: Floats) -> Floats:
    """How often both would choose the same side if they were independent; means are of matches, predicted, preferred."""
    predicted, preferred = means[..., 1], means[..., 2]
    return predicted * preferred + (1 - predicted) * (1 - preferred)


def tie_aware(preferred: Floats, difference: Floats, prompt: NDArray[np.str_], tie_band: float) -> TieAware:
    """
    Raises:
        ValueError: if there are no pairs; an empty set has no accuracy.
    """
    matches, predicted = tie_aware_accuracy(preferred, difference, tie_band), _predicted(difference, tie_band)
    if_tie = 1 - np.abs(0.5 - preferred)
    choices = [(side == choice).astype(np.float64) for side in (predicted, preferred) for choice in (0, 0.5, 1)]
    means = prompt_means(np.stack([matches, if_tie, *choices], axis=1), prompt)
    shares = means[:, 2:].mean(axis=0).tolist()
    chance = sum(p * q * (1 - abs(i - j) / 2) for i, p in enumerate(shares[:3]) for j, q in enumerate(shares[3:]))
    return TieAware(
        n=len(preferred),
        n_prompts=len(means),
        accuracy=estimate_share(means[:, 0]),
        always_tie=float(means[:, 1].mean()),
        chance=chance,
        tie_band=tie_band,
    )


def calibration(preferred: Floats, difference: Floats, temperature: float) -> list[Bin]:
    """Bins of equal width of the scorer's confidence, those that hold pairs."""
    with np.errstate(over="ignore"):
        confidence = 1 / (1 + np.exp(-np.abs(difference) / temperature))
    observed = np.where(difference >= 0, preferred, 1 - preferred)
    bin_of = np.minimum(((confidence - 0.5) * 2 * N_BINS).astype(int), N_BINS - 1)
    return [
        Bin(int(inside.sum()), float(confidence[inside].mean()), float(observed[inside].mean()))
        for inside in (bin_of == number for number in np.unique(bin_of))
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Mean distance between confidence and observed share, over pairs."""
    return sum(each.n * abs(each.confidence - each.observed) for each in bins) / sum(each.n for each in bins)
