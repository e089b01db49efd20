"""How well a scorer predicts a labeler's choices. Pure functions over N labelled pairs.

preferred is 1 if a was chosen, 0 if b, ½ for a tie; difference is the score of a minus the score of b. Accuracies weigh every
prompt the same (core/stats.py); calibration is over pairs.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...core.agreement import kappa_of_shares
from ...core.stats import MIN_PROMPTS, Estimate, Floats, estimate_mean, estimate_share, prompt_means

N_BINS = 10
N_MARGIN_BINS = 3
_CHOICES = np.array([0.0, 0.5, 1.0])
_TIE_CREDIT = 1 - np.abs(
    _CHOICES[:, None] - _CHOICES
)  # for each two of them: 1 for a match, ½ for a tie on one side only

Verdict = Literal["better than chance", "not better than chance", "worse than chance", "too few prompts to tell"]


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
    kappa: Estimate | None
    """Accuracy above chance, as a share of what is possible: Cohen's kappa with half credit for a tie on one side only."""
    above_always_tie: Estimate
    """Accuracy minus that of calling every pair a tie."""
    tie_band: float
    """Differences up to this were taken for ties, in the scorer's unit."""


@dataclass(frozen=True)
class MarginBin:
    """Decided pairs with scores about equally far apart."""

    n: int
    n_prompts: int
    smallest: float
    largest: float
    """Score differences without sign, in the scorer's unit."""
    accuracy: Estimate


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
    means = prompt_means(matches[:, None], prompt[chosen])[:, 0]
    said, wanted = (np.stack([side, 1 - side], axis=1) for side in (predicted, preferred))
    kappa = kappa_of_shares(matches, said, wanted, prompt[chosen])
    return Decided(int(chosen.sum()), len(means), estimate_share(means), kappa)


def verdict(result: Decided) -> Verdict:
    """Whether a scorer predicts choices better than chance does: by the interval of kappa or, without one, of the accuracy."""
    beyond, chance = result.accuracy, 0.5
    if result.kappa and result.kappa.has_interval:
        beyond, chance = result.kappa, 0.0
    if not beyond.has_interval:
        # every prompt has as much right as wrong, or there are too few
        return "too few prompts to tell" if result.n_prompts < MIN_PROMPTS else "not better than chance"
    if beyond.low > chance:
        return "better than chance"
    return "worse than chance" if beyond.high < chance else "not better than chance"


def by_margin(preferred: Floats, difference: Floats, prompt: NDArray[np.str_]) -> list[MarginBin]:
    """Accuracy on the decided pairs with the smallest, the middle and the largest score differences, a third each; equal
    differences stay together."""
    chosen = preferred != 0.5
    preferred, difference, prompt = preferred[chosen], difference[chosen], prompt[chosen]
    size = np.abs(difference)
    matches = 1 - np.abs(_predicted(difference, 0.0) - preferred)
    # how many pairs have a smaller difference decides the bin
    bin_of = np.searchsorted(np.sort(size), size) * N_MARGIN_BINS // max(len(size), 1)
    bins = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        means = prompt_means(matches[inside][:, None], prompt[inside])[:, 0]
        smallest, largest = float(size[inside].min()), float(size[inside].max())
        bins.append(MarginBin(int(inside.sum()), len(means), smallest, largest, estimate_share(means)))
    return bins


def tie_aware(preferred: Floats, difference: Floats, prompt: NDArray[np.str_], tie_band: float) -> TieAware:
    """
    Raises:
        ValueError: if there are no pairs; an empty set has no accuracy.
    """
    matches, predicted = tie_aware_accuracy(preferred, difference, tie_band), _predicted(difference, tie_band)
    if_tie = 1 - np.abs(0.5 - preferred)
    said, wanted = ((side[:, None] == _CHOICES).astype(np.float64) for side in (predicted, preferred))
    means = prompt_means(np.concatenate([np.stack([matches, if_tie], axis=1), said, wanted], axis=1), prompt)
    shares = means[:, 2:].mean(axis=0)
    return TieAware(
        n=len(preferred),
        n_prompts=len(means),
        accuracy=estimate_share(means[:, 0]),
        always_tie=float(means[:, 1].mean()),
        chance=float(shares[:3] @ _TIE_CREDIT @ shares[3:]),
        kappa=kappa_of_shares(matches, said, wanted, prompt, _TIE_CREDIT),
        above_always_tie=estimate_mean(means[:, 0] - means[:, 1]),
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
