"""How many comparisons are needed: worked by hand, against an independent calculation, and against simulated pairs."""

import math

import numpy as np
import pytest
from prefloop.core.power import (
    next_win_rate,
    pairs_needed,
    pairs_to_show,
    power_sentence,
    sample_sentence,
    win_rate_shown,
)
from scipy import stats


@pytest.mark.parametrize(
    ("win_rate", "n"),
    [
        # (0.97998 + 0.84162 · sqrt(0.52 · 0.48 = 0.2496))² / 0.02² = (0.97998 + 0.42047)² / 0.0004 = 4903.2
        (0.52, 4904),
        # (0.97998 + 0.84162 · 0.49910)² / 0.03² = 1.96009 / 0.0009 = 2177.9
        (0.53, 2178),
        # (0.97998 + 0.84162 · 0.49749)² / 0.05² = 1.95631 / 0.0025 = 782.5
        (0.55, 783),
        # (0.97998 + 0.84162 · 0.48990)² / 0.1² = 1.93847 / 0.01 = 193.8
        (0.6, 194),
        # (0.97998 + 0.84162 · 0.45826)² / 0.2² = 1.86503 / 0.04 = 46.6
        (0.7, 47),
        # a sure win has no spread: z² = 1.95996² = 3.84
        (1.0, 4),
    ],
)
def test_decided_pairs_for_a_win_rate_are_those_worked_by_hand(win_rate: float, n: int):
    assert pairs_needed(win_rate) == n
    assert pairs_needed(1 - win_rate) == n  # the other model's win rate


def test_a_win_rate_of_one_half_needs_no_number_of_pairs():
    for win_rate in (0.5, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="win rate must be"):
            pairs_needed(win_rate)


@pytest.mark.parametrize("win_rate", [0.51, 0.52, 0.55, 0.6, 0.7, 0.9, 0.999])
def test_the_smallest_win_rate_shown_is_the_inverse(win_rate: float):
    n = pairs_needed(win_rate)
    shown = win_rate_shown(n)
    assert shown is not None
    assert shown <= win_rate  # n was rounded up
    assert pairs_needed(shown) == n
    one_fewer = win_rate_shown(n - 1)
    assert one_fewer is None or one_fewer > win_rate


def test_fewer_than_four_pairs_show_no_win_rate():
    assert win_rate_shown(3) is None
    # d = (1.95996 · 2 + 0.84162 · sqrt(4 - 3.84146 + 0.70833)) / (2 · 4.70833) = (3.91993 + 0.78364) / 9.41666 = 0.49949
    assert win_rate_shown(4) == pytest.approx(0.99949, abs=1e-5)


def test_about_80_of_100_simulated_tests_find_the_win_rate():
    wins = np.random.default_rng(0).binomial(783, 0.55, size=4000)
    z = (wins / 783 - 0.5) / math.sqrt(0.25 / 783)
    # three standard deviations of 4,000 trials are 1.9 %; whole wins shift the level by up to 1 %
    assert (np.abs(z) > stats.norm.ppf(0.975)).mean() == pytest.approx(0.8, abs=0.03)


def test_ties_must_be_shown_too():
    assert pairs_to_show(783, 0.2) == 979  # 978.75
    assert pairs_to_show(160, 0.2) == 200
    assert pairs_to_show(47, 0.0) == 47
    for rate in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="tie rate"):
            pairs_to_show(47, rate)


def test_the_next_win_rate_is_the_largest_that_needs_more_pairs():
    assert [next_win_rate(n) for n in (46, 47, 193, 194, 783, 4904)] == [0.7, 0.6, 0.6, 0.55, 0.53, 0.51]
    # 51 %: (0.97998 + 0.84162 · 0.49990)² / 0.01² = 1.96196 / 0.0001 = 19,619.6
    assert (next_win_rate(19_619), next_win_rate(19_620)) == (0.51, None)


def test_what_pairs_show_is_said_in_one_sentence():
    # 200 pairs show 59.85 %, and 60 % after rounding up: 59 % would need 240
    assert power_sentence(200) == "with 200 decided pairs a true win rate of 60 % shows; 55 % needs 783"
    assert power_sentence(200, 0.2) == (
        "with 200 decided pairs a true win rate of 60 % shows; 55 % needs 783, 979 pairs with 20 % ties"
    )
    assert power_sentence(2) == "with 2 decided pairs no win rate shows; 70 % needs 47"
    assert power_sentence(2178) == "with 2,178 decided pairs a true win rate of 53.0 % shows; 52 % needs 4,904"
    assert power_sentence(30_000) == "with 30,000 decided pairs a true win rate of 50.9 % shows"


def test_what_pairs_with_ties_show_is_said_in_one_sentence():
    assert sample_sentence(250, 0.2) == (
        "250 pairs with 20 % ties are about 200 decided ones: "
        "a true win rate of 60 % shows; 55 % needs 783, 979 pairs with 20 % ties"
    )
    assert sample_sentence(200) == power_sentence(200)
