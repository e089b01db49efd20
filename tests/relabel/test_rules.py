"""Rules give the decisions that are worked out by hand, and mirror when a and b change places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefloop.relabel.config import Rule
from prefloop.relabel.rules import Decisions, decide, decide_by_rank, widest

ONE = np.ones(1)
THREE = np.ones(3)
VOTING: tuple[Rule, ...] = ("single", "weighted", "majority", "unanimous")


def table(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float64)


def test_single_takes_the_higher_score_and_its_margin_is_the_difference():
    decided = decide("single", table((3.0,), (1.0,), (2.0,)), table((1.0,), (4.5,), (2.0,)), ONE)
    assert decided.choice.tolist() == ["a", "b", "tie"]
    assert decided.margin.tolist() == [2.0, 3.5, 0.0]


def test_the_tie_band_is_part_of_the_tie():
    # differences 0.5, 0.75, -0.5, -0.75 and a band of 0.5
    decided = decide("single", table((0.5,), (0.75,), (0.0,), (0.0,)), table((0.0,), (0.0,), (0.5,), (0.75,)), ONE, 0.5)
    assert decided.choice.tolist() == ["tie", "a", "tie", "b"]
    assert decided.margin.tolist() == [0.5, 0.75, 0.5, 0.75]


def test_p_a_is_the_sigmoid_of_the_difference_in_temperatures():
    # difference 2, temperature 4: 1 / (1 + exp(-0.5)) = 0.622459
    assert decide("single", table((3.0,)), table((1.0,)), 4 * ONE).p_a == pytest.approx(0.6224593312)
    # differences 2 and 0 at temperatures 4 and 1: the mean of 0.622459 and 0.5 = 0.561230
    both = decide("majority", table((3.0, 1.0)), table((1.0, 1.0)), np.array([4.0, 1.0]))
    assert both.p_a == pytest.approx(0.5612296656)


@pytest.mark.filterwarnings("error")
def test_p_a_of_very_different_scores_is_zero_or_one_without_a_warning():
    decided = decide("single", table((1e6,), (-1e6,)), table((-1e6,), (1e6,)), 1e-3 * ONE)
    assert decided.p_a.tolist() == [1.0, 0.0]


def test_majority_counts_votes_and_not_sizes():
    a = table((1, 1, 0), (9, 0, 0), (1, 0, 5), (1, 0, 0))
    b = table((0, 0, 9), (0, 1, 1), (0, 1, 5), (0, 0, 0))
    # votes a a b → a by (1 + 1 - 1) / 3; a b b → b by 1/3; a b tie → tie; a tie tie → a by 1/3
    decided = decide("majority", a, b, THREE)
    assert decided.choice.tolist() == ["a", "b", "tie", "a"]
    assert decided.margin == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])


def test_majority_takes_a_vote_within_the_band_for_none():
    # with a band of 1, the votes are tie, tie, b
    decided = decide("majority", table((1, 1, 0)), table((0, 0, 9)), THREE, 1.0)
    assert decided.choice.tolist() == ["b"]
    assert decided.margin == pytest.approx([1 / 3])


def test_unanimous_decides_only_where_all_agree():
    a = table((1, 2, 3), (0, 0, 0), (1, 1, 0), (1, 1, 0))
    b = table((0, 0, 0), (1, 2, 3), (0, 0, 1), (0, 0, 0))
    decided = decide("unanimous", a, b, THREE)
    assert decided.choice.tolist() == ["a", "b", "tie", "tie"]
    assert decided.margin.tolist() == [1, 1, 0, 0]


def test_mean_rank_takes_the_smaller_mean_rank():
    scores = np.zeros((3, 2))
    # ranks of a: means 1.5, 3, 2; of b: 2, 1.5, 2 → leads 0.5, -1.5, 0
    rank_a, rank_b = table((1, 2), (4, 2), (1, 3)), table((3, 1), (1, 2), (2, 2))
    decided = decide_by_rank(scores, scores, rank_a, rank_b, np.ones(2))
    assert decided.choice.tolist() == ["a", "b", "tie"]
    assert decided.margin.tolist() == [0.5, 1.5, 0.0]
    banded = decide_by_rank(scores, scores, rank_a, rank_b, np.ones(2), 0.5)
    assert banded.choice.tolist() == ["tie", "b", "tie"]


def test_weighted_adds_logits_by_their_shares():
    # differences 4 and -3 at temperatures 2 and 1 are logits 2 and -3; with shares 3 and 1: (6 - 3) / 4 = 0.75
    a, b, heat = table((5, 0)), table((1, 3)), np.array([2.0, 1.0])
    decided = decide("weighted", a, b, heat, shares=np.array([3.0, 1.0]))
    assert (decided.choice.tolist(), decided.margin.tolist()) == (["a"], [0.75])
    assert decided.p_a == pytest.approx(0.6791786992)  # 1 / (1 + exp(-0.75))
    # alike: (2 - 3) / 2 = -0.5
    alike = decide("weighted", a, b, heat)
    assert (alike.choice.tolist(), alike.margin.tolist()) == (["b"], [0.5])
    assert decide("weighted", a, b, heat, 0.5).choice.tolist() == ["tie"]


def test_a_tie_quantile_takes_the_pairs_with_the_smallest_margins():
    # margins 4, 1, 3, 2, and one that is not finite: half of the four are ties, 1 and 2
    a, b = table((4,), (0,), (3,), (0,), (np.nan,)), table((0,), (1,), (0,), (2,), (0,))
    assert decide("single", a, b, ONE, tie_quantile=0.5).choice.tolist() == ["a", "tie", "a", "tie", ""]
    ranks = table((1,), (2,), (1,), (3,), (1,)), table((4,), (1,), (3,), (1,), (1,))  # leads 3, -1, 2, -2
    banded = decide_by_rank(a, b, *ranks, ONE, tie_quantile=0.25)
    assert banded.choice.tolist() == ["a", "tie", "a", "b", ""]


def test_a_tie_quantile_of_votes_is_taken_of_each_scorer():
    # the scorers' units are 1 and 100: of each, the smaller difference is a tie
    a, b = table((1, 100), (2, 200), (3, 0)), table((0, 0), (0, 0), (0, 300))
    decided = decide("unanimous", a, b, np.ones(2), tie_quantile=0.3)
    # votes: tie tie; a a; a b
    assert decided.choice.tolist() == ["tie", "a", "tie"]


def test_the_widest_pair_of_each_prompt_is_the_one_with_the_largest_margin():
    choice = np.array(["a", "b", "a", "tie", "", "a"])
    margin = np.array([1.0, 3.0, 2.0, 0.0, 9.0, 2.0])
    p_a = np.array([0.6, 0.1, 0.7, 0.5, 0.9, 0.8])
    # prompt x: margins 1 and 3; y: 2 and 0; z: undecided and 2
    found = widest(np.array(list("xxyyzz")), Decisions(choice, p_a, margin))
    assert found.tolist() == [False, True, True, False, False, True]
    # equal margins, as of unanimous votes: the surer one
    votes = Decisions(np.array(["a", "b", "a"]), np.array([0.6, 0.2, 0.7]), np.ones(3))
    assert widest(np.array(list("xxx")), votes).tolist() == [False, True, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", VOTING)
def test_a_score_that_is_not_finite_decides_nothing(rule: Rule, bad: float):
    n = 1 if rule == "single" else 3
    a, b = np.ones((3, n)), np.zeros((3, n))
    a[0, 0] = bad
    b[1, 0] = bad
    assert decide(rule, a, b, np.ones(n)).choice.tolist() == ["", "", "a"]


@pytest.mark.filterwarnings("error")
def test_two_infinite_scores_are_no_tie():
    # inf - inf is nan
    assert decide("single", table((np.inf,)), table((np.inf,)), ONE).choice.tolist() == [""]


def test_mean_rank_decides_nothing_where_a_score_is_not_finite():
    a, b = table((np.nan, 1)), table((0, 0))
    assert decide_by_rank(a, b, table((1, 1)), table((2, 2)), np.ones(2)).choice.tolist() == [""]


def test_mean_rank_through_decide_says_what_to_call():
    with pytest.raises(ValueError, match="decide_by_rank"):
        decide("mean-rank", table((1,)), table((0,)), ONE)


SCORES = st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 6), min_size=1, max_size=20)
MIRRORED = {"a": "b", "b": "a", "tie": "tie", "": ""}


def mirrored(one: Decisions, other: Decisions) -> None:
    assert [MIRRORED[choice] for choice in one.choice] == other.choice.tolist()
    assert one.margin.tolist() == other.margin.tolist()
    assert one.p_a == pytest.approx(1 - other.p_a, abs=1e-12)


@pytest.mark.parametrize("rule", VOTING)
@given(rows=SCORES, band=st.sampled_from([0.0, 1.0, 30.0]))
def test_changing_places_mirrors_every_vote(rule: Rule, rows: list[tuple[float, ...]], band: float):
    n = 1 if rule == "single" else 3
    scores = np.array(rows)
    a, b = scores[:, :n], scores[:, 3 : 3 + n]
    mirrored(decide(rule, a, b, np.full(n, 10.0), band), decide(rule, b, a, np.full(n, 10.0), band))


@given(rows=SCORES)
def test_changing_places_mirrors_the_mean_rank(rows: list[tuple[float, ...]]):
    scores = np.array(rows)
    a, b = scores[:, :3], scores[:, 3:]
    ranks = (np.argsort(np.argsort(-scores, 0), 0) + 1).astype(np.float64)
    mirrored(
        decide_by_rank(a, b, ranks[:, :3], ranks[:, 3:], THREE * 10),
        decide_by_rank(b, a, ranks[:, 3:], ranks[:, :3], THREE * 10),
    )
