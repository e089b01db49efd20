"""How far labelers agree beyond chance: Cohen's kappa and Krippendorff's alpha, each with a 95 % interval over prompts.

N is the number of pairs of labels, P of prompts, C of categories, such as a, b and tie. Labels are codes 0..C-1.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .stats import Estimate, Floats, bootstrap, estimate_share, percentile_interval, prompt_means

Codes = NDArray[np.int64]
_EPSILON = 1e-12  # below it, chance agreement is certain but for rounding


def one_hot(codes: Codes, n_categories: int) -> Floats:
    """(N,) codes to (N, C): 1 in the column of each code."""
    return np.eye(n_categories)[codes]


def kappa(first: Codes, second: Codes, prompts: Sequence | NDArray, n_categories: int) -> Estimate | None:
    """Cohen's kappa of two labelers on the same pairs; every prompt weighs the same. 0 by chance, at most 1.

    Returns:
        None if both always give the same one label: chance explains everything.

    Raises:
        ValueError: if there are no pairs.
    """
    matches = (first == second).astype(np.float64)
    return kappa_of_shares(matches, one_hot(first, n_categories), one_hot(second, n_categories), prompts)


def kappa_of_shares(
    matches: Floats, first: Floats, second: Floats, prompts: Sequence | NDArray, weights: Floats | None = None
) -> Estimate | None:
    """The same of labels that may be partial.

    Args:
        matches: credit of each pair of labels, 0 to 1, (N,).
        first: share of each category in the first label, (N, C); so too the second.
        weights: credit for each two categories, (C, C); 1 for equal ones and else 0 if not given.
    """
    n_categories = first.shape[1]
    weights = np.eye(n_categories) if weights is None else weights
    means = prompt_means(np.concatenate([matches[:, None], first, second], axis=1), prompts)  # (P, 1 + 2 C)

    def observed_and_chance(of: Floats) -> tuple[Floats, Floats]:
        one, other = of[..., 1 : 1 + n_categories], of[..., 1 + n_categories :]
        return of[..., 0], np.einsum("...i,ij,...j->...", one, weights, other)

    observed, chance = map(float, observed_and_chance(means.mean(axis=0)))
    if chance > 1 - _EPSILON:
        return None
    value = 0.0 if abs(observed - chance) < _EPSILON else (observed - chance) / (1 - chance)
    if np.ptp(means[:, 0]) == 0:  # no spread to resample, as for a share: the interval is Wilson's, or there is none
        share = estimate_share(means[:, 0])
        return Estimate(value, *((end - chance) / (1 - chance) for end in (share.low, share.high)))
    matched, by_chance = observed_and_chance(bootstrap(means))
    possible = by_chance <= 1 - _EPSILON
    above_chance = matched[possible] - by_chance[possible]
    above_chance[np.abs(above_chance) < _EPSILON] = 0.0  # a rounding error is not a spread
    return Estimate(value, *percentile_interval(above_chance / (1 - by_chance[possible]), len(means)))


def alpha(labels: Sequence[Sequence[int]], prompts: Sequence | NDArray, n_categories: int) -> Estimate | None:
    """Krippendorff's alpha for nominal data: 1 - observed over expected disagreement, of any number of labelers.

    Missing labels are left out: a pair that fewer than two labelers labelled counts for nothing. Pairs weigh by their number of
    labels, as in Krippendorff's definition; the interval resamples prompts.

    Args:
        labels: the labels of each pair, in any order, such as [[0, 0], [1, 2, 1], [0]].
        prompts: the prompt of each pair.

    Returns:
        None if no pair has two labels, or all labels are the same.
    """
    counts = np.array([np.bincount(each, minlength=n_categories) for each in map(list, labels) if len(each) > 1])
    kept = np.array([prompt for prompt, each in zip(prompts, labels, strict=True) if len(each) > 1])
    if not len(counts):
        return None
    n_labels = counts.sum(axis=1)
    # of the ordered pairs of labels within a pair of images, those that differ; over n - 1, so that each label weighs the same
    differing = (n_labels**2 - (counts**2).sum(axis=1)) / (n_labels - 1)
    _, groups = np.unique(kept, return_inverse=True)
    columns = np.concatenate([differing[:, None], counts], axis=1)
    # (P, 1 + C)
    sums = np.stack([np.bincount(groups, weights=column) for column in columns.T], axis=1).astype(np.float64)
    value = float(_alpha(sums.sum(axis=0)))
    if math.isnan(value):
        return None
    alphas = _alpha(bootstrap(sums) * len(sums))
    return Estimate(value, *percentile_interval(alphas[np.isfinite(alphas)], len(sums)))


def _alpha(sums: Floats) -> Floats:
    """(..., 1 + C): the differing labels, then how often each category was given; (...,), nan if all labels are the same."""
    differing, counts = sums[..., 0], sums[..., 1:]
    n = counts.sum(axis=-1)
    expected = (n**2 - (counts**2).sum(axis=-1)) / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > _EPSILON * n, 1 - differing / expected, np.nan)
