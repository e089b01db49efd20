"""Win rates, on numbers worked by hand and on simulated truths."""

import numpy as np
import pytest
from prefloop.eval.compare import compare, wilson


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
    assert one.low == pytest.approx(1 - other.high)
    assert one.diff == pytest.approx(-other.diff)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    # 80 prompts with 4 dependent pairs each: a prompt's own chance of a win is drawn around 0.6
    rng = np.random.default_rng(1)
    prompts, covered, trials = np.repeat(np.arange(80), 4), 0, 200
    for _ in range(trials):
        chance = np.clip(rng.normal(0.6, 0.25, size=80), 0, 1)
        wins = rng.random((80, 4)) < chance[:, None]
        found = compare(np.zeros(320), np.where(wins, 1.0, -1.0).ravel(), prompts, n_resamples=400)
        covered += found.low <= 0.6 <= found.high
    # the clipped normal's mean is 0.594, so a little less than 95 %; 3 standard deviations of 200 trials are 4.6 %
    assert 0.88 <= covered / trials <= 0.99


def test_pairs_without_two_finite_scores_are_left_out_and_counted():
    base, tuned = np.array([1.0, np.nan, 1.0, np.inf]), np.array([2.0, 2.0, 0.0, 2.0])
    found = compare(base, tuned, np.arange(4))
    assert (found.n_pairs, found.n_left_out) == (2, 2)
    assert found.win_rate == 0.5


def test_an_empty_set_has_no_win_rate():
    with pytest.raises(ValueError, match="no pair"):
        compare(np.array([np.nan]), np.array([1.0]), np.array([0]))


def test_unanimous_prompts_still_have_an_interval():
    found = compare(np.zeros(10), np.ones(10), np.arange(10))
    # Wilson for 10 of 10: 1 / (1 + 1.96^2 / 10) = 0.7225
    assert found.low == pytest.approx(0.7225, abs=1e-3)
    assert found.high == pytest.approx(1.0)


def test_wilson_of_a_known_case():
    # 5 of 10: 0.5 ± 0.2634, from the textbook formula
    low, high = wilson(0.5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-3), pytest.approx(0.7634, abs=1e-3))
