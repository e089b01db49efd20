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
class Estimate:
    """A number with its 95 % interval, by bootstrap over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Decided:
    """Over the pairs that the labeler decided. Two equal scores count ½ for either picture."""

    n: int
    n_prompts: int
    accuracy: Estimate
    """Share of them in which the scorer prefers the picture that was chosen; ½ by chance."""
    kappa: Estimate | None
    """Cohen's kappa: 0 by chance, 1 at most. None where both always say the same one side."""


@dataclass(frozen=True)
class TieAware:
    """Over all pairs, of prompts that the tie band was not chosen on."""

    n: int
    n_prompts: int
    accuracy: Estimate
    """A match counts 1, a tie of one side only ½."""
    always_tie: float
    """What saying tie of every pair would score."""
    chance: float
    """What as many ties and choices as the scorer's would score, dealt out at random."""
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
    return 1 - np.abs(_said(difference, tie_band) - preferred)


def _said(difference: Floats, tie_band: float) -> Floats:
    return np.where(np.abs(difference) <= tie_band, 0.5, np.where(difference > 0, 1.0, 0.0))


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


def decided(preferred: Floats, difference: Floats, prompt: NDArray[np.str_]) -> Decided | None:
    """None where the labeler decided nothing."""
    chosen = preferred != 0.5
    if not chosen.any():
        return None
    preferred, prompt = preferred[chosen], prompt[chosen]
    said = (np.sign(difference[chosen]) + 1) / 2
    right = 1 - np.abs(said - preferred)
    sums, resampled = _by_prompt([right, np.ones_like(right), said, preferred], prompt)
    accuracy = right.mean()
    low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975])
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa, kappas = _kappa(sums.sum(0)), _kappa(resampled)
        kappa_low, kappa_high = np.nanquantile(kappas, [0.025, 0.975]) if np.isfinite(kappa) else (np.nan, np.nan)
    if np.ptp(sums[:, 0] / sums[:, 1]) == 0:  # all prompts agree: resampling shows no spread, though n is finite
        low, high = wilson(float(accuracy), len(sums))
        chance = _chance(sums.sum(0))
        kappa_low, kappa_high = ((end - chance) / (1 - chance) if chance < 1 else np.nan for end in (low, high))
    estimate = Estimate(float(kappa), float(kappa_low), float(kappa_high)) if np.isfinite(kappa) else None
    return Decided(len(right), len(sums), Estimate(float(accuracy), float(low), float(high)), estimate)


def tie_aware(preferred: Floats, difference: Floats, prompt: NDArray[np.str_], tie_band: float) -> TieAware:
    """
    Raises:
        ValueError: where there are no pairs; an empty set has no accuracy.
    """
    if not len(preferred):
        raise ValueError("no pair was judged")
    each = points(preferred, difference, tie_band)
    sums, resampled = _by_prompt([each, np.ones_like(each)], prompt)
    low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975]).tolist()
    if np.ptp(sums[:, 0] / sums[:, 1]) == 0:
        low, high = wilson(float(each.mean()), len(sums))
    said = _said(difference, tie_band)
    shares = [[float((side == one).mean()) for one in (0, 0.5, 1)] for side in (said, preferred)]
    chance = sum(p * q * (1 - abs(i - j) / 2) for i, p in enumerate(shares[0]) for j, q in enumerate(shares[1]))
    return TieAware(
        n=len(each),
        n_prompts=len(sums),
        accuracy=Estimate(float(each.mean()), low, high),
        always_tie=float((1 - np.abs(0.5 - preferred)).mean()),
        chance=chance,
        tie_band=tie_band,
    )


def _by_prompt(
    columns: list[Floats], prompt: NDArray[np.str_], n_resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Sums of each column over the pairs of each prompt, (P, K), and over as many prompts drawn again, (R, K)."""
    _, groups = np.unique(prompt, return_inverse=True)
    sums = np.stack([np.bincount(groups, weights=column) for column in columns], 1).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = [
        sums[rng.integers(len(sums), size=(min(_CHUNK, n_resamples - at), len(sums)))].sum(1)
        for at in range(0, n_resamples, _CHUNK)
    ]
    return sums, np.concatenate(drawn)


def _chance(sums: Floats) -> Floats:
    """How often both would say the same if they knew nothing of each other; sums are of right, 1, said and preferred."""
    said, preferred = sums[..., 2] / sums[..., 1], sums[..., 3] / sums[..., 1]
    return said * preferred + (1 - said) * (1 - preferred)


def _kappa(sums: Floats) -> Floats:
    chance = _chance(sums)
    return (sums[..., 0] / sums[..., 1] - chance) / (1 - chance)


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
