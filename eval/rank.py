"""One strength for each of several models, and which of them cannot be told apart. Pure functions.

M is the number of models, C of comparisons between two of them, P of prompts, R of resamples. The model is that of Bradley
and Terry (Biometrika 39, 1952): a with strength s wins over b with strength t in 1 / (1 + 10^((t - s) / 400)) of the pairs,
so that a difference of 100 points is a win rate of 64 %, as in Elo's rating. Ties count one half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.stats import MIN_PROMPTS, N_RESAMPLES, Floats, percentile_interval

PRIOR = 1.0
"""One tied prompt is added for every two models, so that one that wins every pair has a finite strength."""
_POINTS = 400 / np.log(10)
_TOLERANCE = 1e-7  # of the logarithm of a strength
_MOST_ITERATIONS = 10_000


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One model's place among M."""

    model: int
    """Index of the model."""
    strength: float
    """Points; the mean over the models is 0."""
    low: float
    high: float
    """95 % interval by bootstrap over prompts; nan without one."""
    groups: str
    """Letters; two models that share one cannot be told apart."""


def rank(
    wins: Floats, comparisons: Sequence[tuple[int, int]], n_models: int, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> list[Rank]:
    """The models from the strongest to the weakest.

    Args:
        wins: share of each prompt's pairs that the first model of each comparison won, ties one half, (P, C); nan where
            the prompt has no result.
        comparisons: the two models of each comparison, (C,).

    Raises:
        ValueError: if no prompt has a result.
    """
    present = np.isfinite(wins)
    used = present.any(axis=1)
    if not used.any():
        raise ValueError("no prompt has a result")
    present, won = present[used].astype(np.float64), np.where(present[used], wins[used], 0.0)
    n_prompts = len(won)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_resamples)  # (R, P)
    weights = np.concatenate(
        [np.ones((1, n_prompts)), weights.astype(np.float64)]
    )  # the first row is the sample itself
    strengths = bradley_terry(_matrices(weights @ won, weights @ present, comparisons, n_models))
    value, resampled = strengths[0], strengths[1:]
    order = np.argsort(-value, kind="stable")
    apart = np.zeros((n_models, n_models), bool)
    if n_prompts >= MIN_PROMPTS:
        for i in range(n_models):
            low, high = np.quantile(resampled[:, [i]] - resampled, [0.025, 0.975], axis=0)
            apart[i] = (low > 0) | (high < 0)
    letters = groups(apart[np.ix_(order, order)])
    intervals = [percentile_interval(resampled[:, model], n_prompts) for model in order]
    return [
        Rank(model=int(model), strength=float(value[model]), low=low, high=high, groups=letters[place])
        for place, (model, (low, high)) in enumerate(zip(order, intervals, strict=True))
    ]


def bradley_terry(wins: Floats) -> Floats:
    """Strengths in points with mean 0, by Hunter's iteration (Annals of Statistics 32, 2004, section 3).

    Args:
        wins: how often each model won over each other, ties one half, (..., M, M); the diagonal is 0.

    Returns:
        (..., M)
    """
    played = wins + np.swapaxes(wins, -1, -2)
    total = wins.sum(axis=-1)
    odds = np.ones_like(total)
    for _ in range(_MOST_ITERATIONS):
        new = total / (played / (odds[..., :, None] + odds[..., None, :])).sum(axis=-1)
        new /= np.exp(np.log(new).mean(axis=-1, keepdims=True))
        change = np.abs(np.log(new / odds)).max()
        odds = new
        if change < _TOLERANCE:
            break
    return _POINTS * np.log(odds)


def groups(apart: np.ndarray) -> list[str]:
    """Letters for models in the order of their strengths: two share one exactly if nothing between them is told apart.

    Args:
        apart: whether two models are told apart, (M, M).
    """
    n = len(apart)
    letters, end = [""] * n, 0
    number = 0
    for start in range(n):
        stop = start + 1
        while stop < n and not apart[start : stop + 1, start : stop + 1].any():
            stop += 1
        if stop > end:  # not inside the group before
            for place in range(start, stop):
                letters[place] += _letter(number)
            number, end = number + 1, stop
    return letters


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"({number + 1})"


def _matrices(won: Floats, present: Floats, comparisons: Sequence[tuple[int, int]], n_models: int) -> Floats:
    """(R, C) sums to (R, M, M) wins, with the prior."""
    wins = np.full((len(won), n_models, n_models), PRIOR / 2)
    wins[:, range(n_models), range(n_models)] = 0
    for column, (first, second) in enumerate(comparisons):
        wins[:, first, second] += won[:, column]
        wins[:, second, first] += present[:, column] - won[:, column]
    return wins
