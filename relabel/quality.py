"""How well a scorer foretells a labeler's choices. Pure functions over N judged pairs.

preferred is 1 where a was chosen, 0 where b, ½ for a tie; difference is the score of a minus the score of b.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_Z = 1.959963984540054  # 97.5 % of the normal distribution lie below
_CHUNK = 200  # resamples at once
N_BINS = 10


@dataclass(frozen=True)
class Accuracy:
    n: int
    n_prompts: int
    accuracy: float
    """A match counts 1, a tie of one side only ½."""
    low: float
    high: float
    """The 95 % interval, by bootstrap over prompts."""
    tie_band: float
    """Differences up to this were taken for ties, in the scorer's unit."""


@dataclass(frozen=True)
class Bin:
    """Pairs of which the scorer is about equally sure."""

    n: int
    confidence: float
    """Mean probability that it gives to the picture it prefers, ½..1."""
    right: float
    """Share of them in which the labeler chose that picture; ties count one half."""


def points(preferred: Floats, difference: Floats, tie_band: float) -> Floats:
    """PickScore's tie-aware accuracy, arXiv 2305.01569, pair by pair: 1, ½ or 0; (N,)."""
    said = np.where(np.abs(difference) <= tie_band, 0.5, np.where(difference > 0, 1.0, 0.0))
    return 1 - np.abs(said - preferred)


def best_tie_band(preferred: Floats, difference: Floats) -> float:
    """The band with the highest accuracy, the narrowest of several; 0 where there are no pairs."""
    if not len(difference):
        return 0.0
    size = np.abs(difference)
    order = np.argsort(size, kind="stable")
    decided = points(preferred, difference, 0.0)[order]
    tied = (1 - np.abs(0.5 - preferred))[order]
    bands = np.concatenate([[0.0], size[order]])
    gained = np.concatenate([[0.0], np.cumsum(tied - decided)])  # by taking the first k for ties
    whole = np.append(bands[1:] != bands[:-1], True)  # a band takes all pairs of its size
    return float(bands[whole][np.argmax(gained[whole])])


def accuracy(
    preferred: Floats,
    difference: Floats,
    prompt: NDArray[np.str_],
    tie_band: float,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Accuracy:
    """
    Raises:
        ValueError: where there are no pairs; an empty set has no accuracy.
    """
    if not len(preferred):
        raise ValueError("no pair was judged")
    each = points(preferred, difference, tie_band)
    _, groups = np.unique(prompt, return_inverse=True)
    sums, counts = np.bincount(groups, weights=each), np.bincount(groups)
    n = len(counts)
    rng = np.random.default_rng(seed)
    means = []
    for at in range(0, n_resamples, _CHUNK):
        drawn = rng.integers(n, size=(min(_CHUNK, n_resamples - at), n))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975]).tolist()
    if np.ptp(sums / counts) == 0:  # all prompts agree: resampling shows no spread, though n is finite
        low, high = wilson(float(each.mean()), n)
    return Accuracy(len(each), n, float(each.mean()), low, high, tie_band)


def calibration(preferred: Floats, difference: Floats, temperature: float) -> list[Bin]:
    """Bins of equal width of the scorer's confidence, those that hold pairs."""
    with np.errstate(over="ignore"):
        confidence = 1 / (1 + np.exp(-np.abs(difference) / temperature))
    right = np.where(difference >= 0, preferred, 1 - preferred)
    at = np.minimum(((confidence - 0.5) * 2 * N_BINS).astype(int), N_BINS - 1)
    return [
        Bin(int((at == one).sum()), float(confidence[at == one].mean()), float(right[at == one].mean()))
        for one in np.unique(at)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Mean distance of confidence and share right, over pairs."""
    return sum(one.n * abs(one.confidence - one.right) for one in bins) / sum(one.n for one in bins)


def wilson(rate: float, n: int) -> tuple[float, float]:
    """The Wilson score interval of a share, 95 %."""
    centre = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
