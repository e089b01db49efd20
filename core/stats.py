"""The statistic of prefloop: a mean over prompts, with its 95 % interval.

Every prompt weighs the same, however many pairs it has, and a tie counts one half. The pairs of a prompt are not independent,
so whole prompts are resampled. N is the number of pairs, P of prompts, K of columns, R of resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .text import percent

Floats = NDArray[np.float64]
MIN_PROMPTS = 10
"""Fewer have no interval: resampling them gives one that is far too narrow."""
N_RESAMPLES = 2000
_Z = 1.959963984540054  # 97.5 % of the normal distribution lie below
_AT_ONCE = 4_000_000  # values in memory while resampling
_MANY = 5_000  # prompts from which on it is faster to count how often each was sampled than to gather their means


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; `low` and `high` are nan without an interval."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def prompt_means(columns: ArrayLike, prompts: Sequence | NDArray) -> Floats:
    """Mean of each column over the pairs of each prompt; (N, K) to (P, K).

    Args:
        columns: (N, K) numbers of each pair, such as 1 for a win, 0 for a loss and 1/2 for a tie.
        prompts: which prompt each pair belongs to, (N,).

    Raises:
        ValueError: if there are no pairs; an empty set has no mean.
    """
    values = np.asarray(columns, np.float64)
    if not len(values):
        raise ValueError("no pairs: an empty set has no mean")
    _, groups = np.unique(np.asarray(prompts), return_inverse=True)
    counts = np.bincount(groups)
    return np.stack([np.bincount(groups, weights=column) / counts for column in values.T], axis=1)


def bootstrap(means: Floats, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Floats:
    """Means over prompts sampled with replacement; (P, K) to (R, K), or (P,) to (R,)."""
    rng = np.random.default_rng(seed)
    n = len(means)
    step = max(1, _AT_ONCE // means.size)  # how many at once does not change what is sampled
    sizes = [min(step, n_resamples - start) for start in range(0, n_resamples, step)]
    if n < _MANY:
        return np.concatenate([means[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    counts = (np.bincount(sampled, minlength=n) for size in sizes for sampled in rng.integers(n, size=(size, n)))
    return np.stack([count @ means / n for count in counts])


def estimate_share(means: Floats, resampled: Floats | None = None) -> Estimate:
    """A share, such as a win rate or an accuracy, with its interval.

    If all prompts agree, resampling shows no spread although P is finite; the interval is then Wilson's.

    Args:
        means: share of each prompt, 0 to 1, (P,).
        resampled: their bootstrap, (R,); made here if not given.
    """
    value = float(means.mean())
    if len(means) >= MIN_PROMPTS and np.ptp(means) == 0:
        return Estimate(value, *wilson(float(means[0]), len(means)))
    return estimate_mean(means, resampled)


def estimate_mean(means: Floats, resampled: Floats | None = None) -> Estimate:
    """Any mean, such as a difference of scores, with its interval; none if resampling shows no spread.

    Args:
        means: of each prompt, (P,).
        resampled: their bootstrap, (R,); made here if not given.
    """
    resampled = bootstrap(means) if resampled is None else resampled
    return Estimate(float(means.mean()), *percentile_interval(resampled, len(means)))


def percentile_interval(resampled: Floats, n_prompts: int) -> tuple[float, float]:
    """The middle 95 % of resampled numbers, (R,); nan below MIN_PROMPTS prompts, or if they differ by no more than rounding."""
    if n_prompts < MIN_PROMPTS or not len(resampled):
        return math.nan, math.nan
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return (low, high) if high - low > 1e-9 * max(abs(low), abs(high)) else (math.nan, math.nan)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The Wilson score interval of a share of n independent trials, 95 %."""
    center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)


def interval_text(low: float | None, high: float | None, n_prompts: int, form: str | None = None) -> str:
    """An interval as text, or why there is none, such as "no interval: 3 prompts, at least 10 are needed".

    Args:
        form: of each number; if not given they are shares, and become percentages that follow one with its sign: "45.1 to 58.9".
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return no_interval(n_prompts)
    return f"{100 * low:.1f} to {100 * high:.1f}" if form is None else f"{low:{form}} to {high:{form}}"


def estimate_text(estimate: Estimate | None, n_prompts: int, form: str | None = None) -> str:
    """A number and its interval as text, such as "52.0 % (45.1 to 58.9)"; "undefined" for None."""
    if estimate is None:
        return "undefined"
    value = percent(estimate.value) if form is None else f"{estimate.value:{form}}"
    return f"{value} ({interval_text(estimate.low, estimate.high, n_prompts, form)})"


def no_interval(n_prompts: int) -> str:
    """Why a number has no interval."""
    if n_prompts >= MIN_PROMPTS:
        return "no interval: the same for every prompt"
    return f"no interval: {n_prompts} prompt{'' if n_prompts == 1 else 's'}, at least {MIN_PROMPTS} are needed"
