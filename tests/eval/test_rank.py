"""Strengths of several models, by hand where that is possible, and which of them are told apart."""

import math

import numpy as np
import pytest
from prefloop.eval.rank import bradley_terry, groups, rank


def test_two_models_differ_by_the_log_odds_of_their_win_rate():
    wins = np.array([[0.0, 64.0], [36.0, 0.0]])
    strong, weak = bradley_terry(wins)
    assert strong - weak == pytest.approx(400 * math.log10(64 / 36), abs=1e-4)
    assert strong - weak == pytest.approx(100, abs=0.1)  # 100 points are 64 %
    assert strong + weak == pytest.approx(0, abs=1e-9)


def test_three_models_with_win_rates_that_follow_the_model_get_their_strengths_back():
    odds = np.array([4.0, 2.0, 0.125])  # their product is 1
    wins = odds[:, None] / (odds[:, None] + odds) * 90
    np.fill_diagonal(wins, 0)
    assert bradley_terry(wins) == pytest.approx(400 * np.log10(odds), abs=1e-3)
    both = bradley_terry(np.stack([wins, wins.T]))
    assert both[1] == pytest.approx(-both[0], abs=1e-3)


def test_three_models_that_beat_each_other_in_a_circle_are_equal():
    wins = np.array([[0, 9, 1], [1, 0, 9], [9, 1, 0]], float)
    assert bradley_terry(wins) == pytest.approx([0, 0, 0], abs=1e-6)


def decided(rates: list[float], n_prompts: int = 200) -> np.ndarray:
    """Prompts of which each comparison's first model wins this fraction, spread evenly."""
    places = (np.arange(n_prompts)[:, None] * 0.6180339887 + np.arange(len(rates)) * 0.37) % 1
    return (places < rates).astype(float)


def test_models_are_ranked_with_intervals_and_groups_that_cannot_be_told_apart():
    comparisons = [(0, 1), (0, 2), (1, 2)]
    ranks = rank(decided([0.5, 0.2, 0.2]), comparisons, 3)  # the third is clearly the best
    assert ranks[0].model == 2
    assert ranks[0].groups == "A"
    assert {place.groups for place in ranks[1:]} == {"B"}
    for place in ranks:
        assert place.low < place.strength < place.high
    assert ranks[0].low > max(place.high for place in ranks[1:])
    assert sum(place.strength for place in ranks) == pytest.approx(0, abs=1e-6)


def test_an_interval_is_as_wide_as_that_of_the_win_rate():
    ranks = rank(decided([0.6], 400), [(0, 1)], 2, n_resamples=4000)
    # by the delta method the standard error of the log odds is 1 / sqrt(n p (1 - p)); each strength is half of them
    half = 1.96 * (400 / math.log(10)) / math.sqrt(401 * 0.6 * 0.4) / 2
    assert ranks[0].strength - ranks[0].low == pytest.approx(half, rel=0.08)
    assert ranks[0].high - ranks[0].strength == pytest.approx(half, rel=0.08)


def test_a_model_that_wins_every_prompt_has_a_finite_strength():
    ranks = rank(np.ones((99, 1)), [(0, 1)], 2)
    # one tied prompt is added: 99.5 wins to 0.5
    assert ranks[0].strength - ranks[1].strength == pytest.approx(400 * math.log10(199), abs=1e-3)


def test_prompts_without_a_result_do_not_count():
    wins = decided([0.7, 0.6, 0.5])
    some = np.concatenate([wins, np.full((50, 3), np.nan)])
    comparisons = [(0, 1), (0, 2), (1, 2)]
    assert rank(some, comparisons, 3) == rank(wins, comparisons, 3)
    one_missing = wins.copy()
    one_missing[:, 2] = np.nan  # the second and the third were never compared: both still have a place
    assert all(math.isfinite(place.strength) for place in rank(one_missing, comparisons, 3))
    with pytest.raises(ValueError, match="no prompt has a result"):
        rank(np.full((5, 3), np.nan), comparisons, 3)


def test_few_prompts_tell_no_models_apart():
    ranks = rank(np.ones((9, 1)), [(0, 1)], 2)
    assert [place.groups for place in ranks] == ["A", "A"]
    assert math.isnan(ranks[0].low)


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        ([], ["A", "A", "A"]),
        ([(0, 1), (0, 2), (1, 2)], ["A", "B", "C"]),
        ([(0, 2)], ["A", "AB", "B"]),
        ([(0, 1), (0, 2)], ["A", "B", "B"]),
        ([(1, 2), (0, 2)], ["A", "A", "B"]),
        ([(0, 1)], ["A", "B", "B"]),  # the third is told apart from neither, but lies behind one that is
    ],
)
def test_models_share_a_letter_if_nothing_between_them_is_told_apart(apart: list, expected: list[str]):
    matrix = np.zeros((3, 3), bool)
    for i, j in apart:
        matrix[i, j] = matrix[j, i] = True
    assert groups(matrix) == expected
