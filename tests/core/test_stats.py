"""A mean over prompts and its interval: worked by hand, by an independent formula, and on simulated truths."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from prefloop.core.stats import (
    MIN_PROMPTS,
    Estimate,
    bootstrap,
    estimate_mean,
    estimate_share,
    estimate_text,
    interval_text,
    no_interval,
    percentile_interval,
    prompt_means,
    wilson,
)
from scipy import stats


def share_over(values: NDArray, prompts: NDArray, n_resamples: int = 2000) -> Estimate:
    means = prompt_means(values[:, None], prompts)[:, 0]
    return estimate_share(means, bootstrap(means, n_resamples))


def test_every_prompt_weighs_the_same_and_a_tie_counts_one_half():
    values = np.array([1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    # "b": a win and a tie, 0.75; "a": four losses, 0; mean 0.375. Over pairs it would be 1.5 / 6 = 0.25
    means = prompt_means(np.stack([values, 2 * values], axis=1), ["b", "b", "a", "a", "a", "a"])
    assert means.tolist() == [[0.0, 0.0], [0.75, 1.5]]
    assert estimate_share(means[:, 0]).value == pytest.approx(0.375)


def test_an_empty_set_has_no_mean():
    with pytest.raises(ValueError, match="no pairs"):
        prompt_means(np.empty((0, 2)), [])


def test_the_bootstrap_is_the_percentile_bootstrap_over_prompts():
    rng = np.random.default_rng(0)
    means = rng.random(50)
    found = estimate_share(means, bootstrap(means, 20_000))
    expected = stats.bootstrap((means,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    # two bootstraps of 20,000 resamples: their ends stray by about a fiftieth of the standard error
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.1 * means.std() / np.sqrt(50))
    assert found.value == pytest.approx(means.mean())


def test_columns_are_resampled_together_and_whatever_fits_in_memory(monkeypatch: pytest.MonkeyPatch):
    means = np.random.default_rng(0).random((30, 2))
    both = bootstrap(np.stack([means[:, 0], 1 - means[:, 0]], axis=1), 100)
    assert both.sum(axis=1) == pytest.approx(1.0)
    at_once = bootstrap(means, 100)
    monkeypatch.setattr("prefloop.core.stats._AT_ONCE", 7 * means.size)  # seven at a time
    assert np.array_equal(bootstrap(means, 100), at_once)


def test_equal_pairs_of_a_prompt_say_no_more_than_one():
    of_prompt = np.random.default_rng(0).random(200)
    alone = share_over(of_prompt, np.arange(200))
    repeated = share_over(np.repeat(of_prompt, 5), np.repeat(np.arange(200), 5))
    # counted as independent they would be 5 ** 0.5 narrower
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))


def test_swapping_the_sides_mirrors_a_share_and_its_interval():
    rng = np.random.default_rng(0)
    values, prompts = rng.choice([0, 0.5, 1], 60), np.repeat(np.arange(20), 3)
    one, other = share_over(values, prompts), share_over(1 - values, prompts)
    assert (one.value, one.low, one.high) == pytest.approx((1 - other.value, 1 - other.high, 1 - other.low))


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        # with z² = 3.8415: center 0.5, half width 1.96 / 1.38415 · sqrt(0.25 / 10 + 3.8415 / 400) = 0.2634
        (0.5, 10, 0.2366, 0.7634),
        # center (0.8 + 0.19207) / 1.38415 = 0.7168, half width 1.96 / 1.38415 · sqrt(0.016 + 0.0096) = 0.2266
        (0.8, 10, 0.4902, 0.9433),
        (1.0, 10, 10 / (10 + 3.8415), 1.0),
        (0.0, 10, 0.0, 3.8415 / (10 + 3.8415)),
    ],
)
def test_wilson_intervals_are_those_worked_by_hand(share: float, n: int, low: float, high: float):
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)
    if share in (0.5, 0.8):
        expected = stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
        assert wilson(share, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_on_which_all_prompts_agree_has_wilsons_interval(share: float):
    means = np.full(MIN_PROMPTS, share)
    found = estimate_share(means)
    assert (found.value, found.low, found.high) == pytest.approx((share, *wilson(share, MIN_PROMPTS)))
    assert found.low < found.high


@pytest.mark.parametrize("n", range(1, MIN_PROMPTS))
def test_fewer_than_ten_prompts_have_no_interval(n: int):
    for means in (np.ones(n), np.linspace(0, 1, n)):
        for found in (estimate_share(means), estimate_mean(means)):
            assert found.value == pytest.approx(means.mean())
            assert not found.has_interval
            assert math.isnan(found.low)
            assert math.isnan(found.high)


def test_ten_prompts_that_differ_have_the_bootstraps_interval():
    found = estimate_share(np.array([1.0] * 5 + [0.0] * 5))
    # 2.5 % of sums of ten fair coins lie at 2 or below, and as many at 8 or above
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.2, 0.8))


def test_a_difference_that_is_the_same_for_every_prompt_has_no_interval_of_width_zero():
    # 0.3 up to rounding, which is a spread of 1e-17
    found = estimate_mean(np.array([0.4, 0.5, 0.6, 0.7] * 5) - np.array([0.1, 0.2, 0.3, 0.4] * 5))
    assert (found.value, found.has_interval) == (pytest.approx(0.3), False)
    assert not estimate_mean(np.zeros(20)).has_interval
    assert estimate_mean(np.array([1e-6, 2e-6] * 10)).has_interval  # small, and a spread


def test_an_interval_of_nothing_is_none():
    assert math.isnan(percentile_interval(np.empty(0), 20)[0])


def test_intervals_contain_the_truth_about_95_times_in_100():
    """Of 100 prompts with 2 to 8 pairs, half win one pair in five and half win all; a tenth of the pairs are ties."""
    rng, trials, covered, by_pairs = np.random.default_rng(1), 500, 0, 0
    truth = 0.9 * (0.2 + 1.0) / 2 + 0.1 * 0.5  # 0.59
    for _ in range(trials):
        prompts = np.repeat(np.arange(100), rng.integers(2, 9, size=100))
        chance = rng.choice([0.2, 1.0], 100)[prompts]
        values = np.where(rng.random(len(prompts)) < 0.1, 0.5, rng.random(len(prompts)) < chance)
        found = share_over(values, prompts, 400)
        covered += found.low <= truth <= found.high
        by_pairs += abs(values.mean() - truth) < 1.96 * values.std() / np.sqrt(len(values))
    # three standard deviations of 500 trials are 2.9 %, and the bootstrap of 100 prompts itself lacks about 1 %
    assert 0.91 <= covered / trials <= 0.979
    assert by_pairs / trials < 0.8  # as if pairs were independent


def test_an_interval_is_told_in_words():
    assert interval_text(0.524, 0.556, 400) == "52.4 to 55.6"
    assert interval_text(-0.1, 0.25, 400, "+.2f") == "-0.10 to +0.25"
    for none in (None, math.nan):
        assert interval_text(none, none, 3) == "no interval: 3 prompts, at least 10 are needed"
    assert estimate_text(Estimate(0.524, 0.45, 0.589), 400) == "52.4 % (45.0 to 58.9)"
    assert estimate_text(Estimate(0.5, 0.25, 0.75), 400, ".2f") == "0.50 (0.25 to 0.75)"
    assert estimate_text(Estimate(0.5, math.nan, math.nan), 3).startswith("50.0 % (no interval: 3 prompts")
    assert estimate_text(None, 400) == "undefined"
    assert no_interval(1) == "no interval: 1 prompt, at least 10 are needed"
    assert no_interval(40) == "no interval: the same for every prompt"


@pytest.mark.parametrize("n", [4_999, 5_000])
def test_few_and_many_prompts_are_resampled_the_same_way(n: int):
    means = np.random.default_rng(1).random((n, 2))
    draws = np.random.default_rng(7).integers(n, size=(3, n))
    slowly = [[sum(column[draw].tolist()) / n for column in means.T] for draw in draws]
    assert bootstrap(means, 3, seed=7) == pytest.approx(np.array(slowly), rel=1e-12)
    assert bootstrap(means[:, 0], 3, seed=7) == pytest.approx(np.array(slowly)[:, 0], rel=1e-12)
