"""Win rates, on numbers worked by hand."""

import math

import numpy as np
import pytest
from prefloop.eval.compare import compare


def test_ties_count_one_half_and_every_prompt_weighs_the_same():
    # prompt 0: a win and a tie = 0.75; prompt 1: a loss = 0; mean 0.375
    found = compare(np.array([1.0, 2.0, 5.0]), np.array([2.0, 2.0, 4.0]), np.array([0, 0, 1]))
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)
    assert found.win_rate == pytest.approx(0.375)
    # base: (1.5 + 5) / 2, tuned: (2 + 4) / 2
    assert found.base_mean == pytest.approx(3.25)
    assert found.tuned_mean == pytest.approx(3.0)
    assert found.diff == pytest.approx(-0.25)
    assert (found.n_prompts, found.n_pairs) == (2, 3)


def test_swapping_the_models_mirrors_everything():
    rng = np.random.default_rng(0)
    a, b, prompts = rng.normal(size=60), rng.normal(size=60), np.repeat(np.arange(20), 3)
    one, other = compare(a, b, prompts), compare(b, a, prompts)
    assert one.win_rate == pytest.approx(1 - other.win_rate)
    assert (one.win_rate_low, one.win_rate_high) == pytest.approx((1 - other.win_rate_high, 1 - other.win_rate_low))
    assert (one.diff, one.diff_low, one.diff_high) == pytest.approx((-other.diff, -other.diff_high, -other.diff_low))


def test_pairs_without_two_finite_scores_are_excluded_and_counted():
    base, tuned = np.array([1.0, np.nan, 1.0, np.inf]), np.array([2.0, 2.0, 0.0, 2.0])
    found = compare(base, tuned, np.arange(4))
    assert (found.n_pairs, found.n_excluded) == (2, 2)
    assert found.win_rate == 0.5


def test_an_empty_set_has_no_win_rate():
    with pytest.raises(ValueError, match="no pair"):
        compare(np.array([np.nan]), np.array([1.0]), np.array([0]))


def test_prompts_that_all_agree_still_have_an_interval_and_few_prompts_have_none():
    won = compare(np.zeros(10), np.ones(10), np.arange(10))
    # Wilson for 10 of 10: 1 / (1 + 1.96^2 / 10) = 0.7225
    assert (won.win_rate_low, won.win_rate_high) == (pytest.approx(0.7225, abs=1e-3), pytest.approx(1.0))
    assert (won.diff, math.isnan(won.diff_low), math.isnan(won.diff_high)) == (1.0, True, True)  # 1 for every prompt
    few = compare(np.zeros(18), np.arange(-8.0, 10.0), np.arange(18) // 2)  # nine prompts
    # four prompts lose both pairs, one ties and wins, four win both
    assert (few.n_prompts, few.win_rate) == (9, pytest.approx((4 * 0 + 0.75 + 4 * 1) / 9))
    assert all(math.isnan(end) for end in (few.win_rate_low, few.win_rate_high, few.diff_low, few.diff_high))


def test_the_interval_of_a_difference_is_that_of_the_differences_of_prompts():
    rng = np.random.default_rng(0)
    base = 10 * rng.normal(size=200)  # prompts differ far more than the models do
    diff = rng.normal(0.5, 1.0, size=200)
    found = compare(base, base + diff, np.arange(200))
    half = 1.96 * diff.std() / np.sqrt(200)
    assert (found.diff_low, found.diff_high) == pytest.approx((diff.mean() - half, diff.mean() + half), abs=0.1 * half)
