"""Kappa and alpha: worked by hand, on a published example with missing values, and on simulated labelers."""

import numpy as np
import pytest
from prefloop.core.agreement import alpha, kappa, kappa_of_shares, one_hot

A, B, TIE = 0, 1, 2


def codes(letters: str) -> np.ndarray:
    return np.array(["abt".index(letter) for letter in letters], np.int64)


def test_kappa_is_the_one_worked_by_hand():
    # same in aaaa, bb and t: 7 of 9; both say a 5, b 3 and tie 1 times: chance (25 + 9 + 1) / 81
    found = kappa(codes("aaaaabbbt"), codes("aaaabbbat"), range(9), 3)
    assert found is not None
    assert found.value == pytest.approx((7 / 9 - 35 / 81) / (1 - 35 / 81))
    assert not found.has_interval  # nine prompts


def test_kappa_weighs_prompts_and_not_pairs():
    # prompt x: one pair, the same; prompt y: three pairs, all different. Agreement ½, over pairs it would be ¼
    # first says a always; second says a of half of the (weighed) pairs: chance ½, kappa 0
    found = kappa(codes("aaaa"), codes("abbb"), list("xyyy"), 3)
    assert found is not None
    assert found.value == pytest.approx(0.0)


def test_labelers_that_always_give_the_same_label_have_no_kappa():
    assert kappa(codes("aaa"), codes("aaa"), range(3), 3) is None
    with pytest.raises(ValueError, match="no pairs"):
        kappa(codes(""), codes(""), [], 3)


def test_a_labeler_that_always_says_tie_agrees_by_chance_only():
    found = kappa(codes("t" * 30), codes("abt" * 10), range(30), 3)
    assert found is not None
    assert (found.value, found.has_interval) == (0.0, False)  # in every resample it is 0, and not a rounding error


def test_full_agreement_has_wilsons_interval():
    first = codes("ab" * 10)
    found = kappa(first, first, range(20), 2)
    assert found is not None
    # Wilson's lower end of 20 of 20 is 20 / 23.8415 = 0.8389; chance is ½: (0.8389 - 0.5) / 0.5 = 0.6778
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.6778, 1.0), abs=1e-4)


def test_weights_give_part_of_the_credit_for_a_tie():
    first, second = one_hot(codes("atb"), 3), one_hot(codes("aab"), 3)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0.5, 0.5, 1]])
    # credit 1, ½, 1: 5/6. First: a ⅓, b ⅓, tie ⅓; second: a ⅔, b ⅓
    # chance = ⅓·⅔·1 + ⅓·⅓·1 (same) + ⅓·(⅔ + ⅓)·½ (tie against either) = 2/9 + 1/9 + 1/6 = ½
    found = kappa_of_shares(np.array([1, 0.5, 1]), first, second, range(3), half)
    assert found is not None
    assert found.value == pytest.approx((5 / 6 - 1 / 2) / (1 / 2))


def test_the_interval_of_random_labels_contains_no_agreement_nineteen_times_in_twenty():
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        first, second = rng.choice(3, 80, p=[0.4, 0.4, 0.2]), rng.choice(3, 80, p=[0.2, 0.2, 0.6])
        found = kappa(first, second, range(80), 3)
        assert found is not None
        held += found.low <= 0 <= found.high
    assert 88 <= held <= 99


def test_the_interval_of_kappa_is_over_prompts():
    """Ten prompts of 50 pairs, all the same or all different: ten facts."""
    prompts, first = np.repeat(np.arange(10), 50), np.tile([A, B], 250)
    second = np.where(prompts < 5, first, 1 - first)
    found = kappa(first, second, prompts, 2)
    assert found is not None
    # agreement ½ with the interval 0.2 to 0.8 of ten fair coins, chance ½
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -0.6, 0.6), abs=1e-9)


def test_alpha_is_the_one_worked_by_hand_with_missing_labels():
    labels = [[A, A], [A, B], [B, B, B], [TIE]]
    # the last has one label and counts for nothing; n = 7: a 3, b 4
    # observed: the second pair has 2 differing ordered pairs of labels over n - 1 = 1: 2
    # expected: (49 - 9 - 16) / 6 = 4; alpha 1 - 2 / 4
    found = alpha(labels, range(4), 3)
    assert found is not None
    assert found.value == pytest.approx(0.5)


def test_alpha_of_three_labels_divides_by_their_number_less_one():
    # [a, a, b]: 4 differing ordered pairs over 2 = 2; [b, b]: 0; n = 5: a 2, b 3; expected (25 - 4 - 9) / 4 = 3
    found = alpha([[A, A, B], [B, B]], range(2), 2)
    assert found is not None
    assert found.value == pytest.approx(1 - 2 / 3)


def test_alpha_of_the_published_example_is_the_published_one():
    """Three coders and 15 units with missing values: 0.691 (en.wikipedia.org/wiki/Krippendorff's_alpha, nominal)."""
    coders = ["*****34121133*3", "1*213343*******", "**21344*21133*4"]
    units = [[int(letter) - 1 for letter in unit if letter != "*"] for unit in zip(*coders, strict=True)]
    found = alpha(units, range(15), 4)
    assert found is not None
    assert found.value == pytest.approx(0.691, abs=5e-4)
    assert found.low < found.value < found.high


def test_alpha_is_undefined_without_two_labels_and_without_two_categories():
    assert alpha([[A], [B]], range(2), 3) is None
    assert alpha([], [], 3) is None
    assert alpha([[A, A], [A, A]], range(2), 3) is None


def test_alpha_of_random_labels_is_near_zero_and_of_equal_ones_is_one():
    rng = np.random.default_rng(0)
    random = alpha(rng.integers(0, 3, size=(400, 3)).tolist(), range(400), 3)
    same = alpha([[n % 3] * 3 for n in range(30)], range(30), 3)
    assert random is not None
    assert same is not None
    assert random.low < 0 < random.high
    assert random.high - random.low < 0.15
    assert same.value == 1.0
