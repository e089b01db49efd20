"""Rules give decisions worked out by hand, and mirror when a and b are swapped."""

from typing import Any

import numpy as np
import pytest
from content import TESTS, add_image, add_pair, add_prompt
from hypothesis import given
from hypothesis import strategies as st
from prefloop.core.options import config_fields
from prefloop.relabel import RelabelConfig
from prefloop.relabel.rules import RULES, Decisions, PairScores, Rule
from prefloop.relabel.rules import decide as decide_scores
from prefloop.relabel.selection import SELECTIONS, largest_margin
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore, UsageError

ROOT = TESTS.parent

ONE = np.ones(1)
THREE = np.ones(3)
WITHOUT_RANKS = ("single", "weighted", "majority", "unanimous", "pareto")


def table(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float64)


def decide(
    rule: str, a: np.ndarray, b: np.ndarray, temperatures: np.ndarray, tie_band: float = 0.0, **more: Any
) -> Decisions:
    scores: dict[str, Any] = {"rank_a": a, "rank_b": b} | more
    return decide_scores(rule, PairScores(a=a, b=b, temperatures=temperatures, tie_band=tie_band, **scores))


def decide_by_rank(
    a: np.ndarray, b: np.ndarray, rank_a: np.ndarray, rank_b: np.ndarray, *tie_band: float, **more: Any
) -> Decisions:
    return decide("mean-rank", a, b, np.ones(a.shape[1]), *tie_band, rank_a=rank_a, rank_b=rank_b, **more)


def test_single_takes_the_higher_score_and_its_margin_is_the_difference():
    decided = decide("single", table((3.0,), (1.0,), (2.0,)), table((1.0,), (4.5,), (2.0,)), ONE)
    assert decided.choice.tolist() == ["a", "b", "tie"]
    assert decided.margin.tolist() == [2.0, 3.5, 0.0]


def test_a_margin_equal_to_the_tie_band_is_a_tie():
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


def test_majority_counts_a_vote_within_the_band_as_a_tie():
    # with a band of 1, the votes are tie, tie, b
    decided = decide("majority", table((1, 1, 0)), table((0, 0, 9)), THREE, 1.0)
    assert decided.choice.tolist() == ["b"]
    assert decided.margin == pytest.approx([1 / 3])


def test_unanimous_decides_only_if_all_agree():
    a = table((1, 2, 3), (0, 0, 0), (1, 1, 0), (1, 1, 0))
    b = table((0, 0, 0), (1, 2, 3), (0, 0, 1), (0, 0, 0))
    decided = decide("unanimous", a, b, THREE)
    assert decided.choice.tolist() == ["a", "b", "tie", "tie"]
    assert decided.margin.tolist() == [1, 1, 0, 0]


def test_mean_rank_takes_the_smaller_mean_rank():
    scores = np.zeros((3, 2))
    # ranks of a: means 1.5, 3, 2; of b: 2, 1.5, 2 → margins 0.5, -1.5, 0
    rank_a, rank_b = table((1, 2), (4, 2), (1, 3)), table((3, 1), (1, 2), (2, 2))
    decided = decide_by_rank(scores, scores, rank_a, rank_b)
    assert decided.choice.tolist() == ["a", "b", "tie"]
    assert decided.margin.tolist() == [0.5, 1.5, 0.0]
    banded = decide_by_rank(scores, scores, rank_a, rank_b, 0.5)
    assert banded.choice.tolist() == ["tie", "b", "tie"]


def test_weighted_averages_logits_by_weight():
    # differences 4 and -3 at temperatures 2 and 1 are logits 2 and -3; with weights 3 and 1: (6 - 3) / 4 = 0.75
    a, b, temperatures = table((5, 0)), table((1, 3)), np.array([2.0, 1.0])
    decided = decide("weighted", a, b, temperatures, weights=np.array([3.0, 1.0]))
    assert (decided.choice.tolist(), decided.margin.tolist()) == (["a"], [0.75])
    assert decided.p_a == pytest.approx(0.6791786992)  # 1 / (1 + exp(-0.75))
    # equal weights: (2 - 3) / 2 = -0.5
    equal = decide("weighted", a, b, temperatures)
    assert (equal.choice.tolist(), equal.margin.tolist()) == (["b"], [0.5])
    assert decide("weighted", a, b, temperatures, 0.5).choice.tolist() == ["tie"]


def test_a_tie_quantile_takes_the_pairs_with_the_smallest_margins():
    # margins 4, 1, 3, 2, and one that is not finite: half of the four are ties, 1 and 2
    a, b = table((4,), (0,), (3,), (0,), (np.nan,)), table((0,), (1,), (0,), (2,), (0,))
    assert decide("single", a, b, ONE, tie_quantile=0.5).choice.tolist() == ["a", "tie", "a", "tie", ""]
    ranks = table((1,), (2,), (1,), (3,), (1,)), table((4,), (1,), (3,), (1,), (1,))  # margins 3, -1, 2, -2
    banded = decide_by_rank(a, b, *ranks, tie_quantile=0.25)
    assert banded.choice.tolist() == ["a", "tie", "a", "b", ""]


def test_a_tie_quantile_of_votes_applies_to_each_scorer():
    # the scorers' units are 1 and 100: the smaller difference of each is a tie
    a, b = table((1, 100), (2, 200), (3, 0)), table((0, 0), (0, 0), (0, 300))
    decided = decide("unanimous", a, b, np.ones(2), tie_quantile=0.3)
    # votes: tie tie; a a; a b
    assert decided.choice.tolist() == ["tie", "a", "tie"]


def test_pareto_decides_if_a_scorer_prefers_an_image_and_none_the_other():
    a = table((1, 1, 1), (1, 0, 0), (9, 0, 0), (0, 0, 0), (0, 0, 0))
    b = table((0, 0, 0), (0, 0, 0), (0, 1, 0), (1, 0, 2), (0, 0, 0))
    # votes a a a; a tie tie; a b tie; b tie b; tie tie tie
    decided = decide("pareto", a, b, THREE)
    assert decided.choice.tolist() == ["a", "a", "tie", "b", "tie"]
    assert decided.margin == pytest.approx([1, 1 / 3, 0, 2 / 3, 0])


def test_pareto_ignores_a_difference_within_the_band():
    # differences 3, -1 and 2, -1.5: with a band of 1 the second scorer's first difference is a tie, its other one is not
    a, b = table((3, 0), (2, 0)), table((0, 1), (0, 1.5))
    assert decide("pareto", a, b, np.ones(2)).choice.tolist() == ["tie", "tie"]
    decided = decide("pareto", a, b, np.ones(2), 1.0)
    assert decided.choice.tolist() == ["a", "tie"]
    assert decided.margin.tolist() == [0.5, 0.0]


def test_largest_margin_selects_one_pair_of_each_prompt():
    choice = np.array(["a", "b", "a", "tie", "", "a"])
    margin = np.array([1.0, 3.0, 2.0, 0.0, 9.0, 2.0])
    p_a = np.array([0.6, 0.1, 0.7, 0.5, 0.9, 0.8])
    # prompt x: margins 1 and 3; y: 2 and 0; z: undecided and 2
    selected = largest_margin(np.array(list("xxyyzz")), Decisions(choice, p_a, margin))
    assert selected.tolist() == [False, True, True, False, False, True]
    # equal margins, as with unanimous votes: the one with p_a further from ½
    votes = Decisions(np.array(["a", "b", "a"]), np.array([0.6, 0.2, 0.7]), np.ones(3))
    assert largest_margin(np.array(list("xxx")), votes).tolist() == [False, True, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", WITHOUT_RANKS)
def test_a_score_that_is_not_finite_decides_nothing(rule: str, bad: float):
    n = 1 if rule == "single" else 3
    a, b = np.ones((3, n)), np.zeros((3, n))
    a[0, 0] = bad
    b[1, 0] = bad
    assert decide(rule, a, b, np.ones(n)).choice.tolist() == ["", "", "a"]


@pytest.mark.filterwarnings("error")
def test_two_infinite_scores_are_not_a_tie():
    # inf - inf is nan
    assert decide("single", table((np.inf,)), table((np.inf,)), ONE).choice.tolist() == [""]


def test_mean_rank_decides_nothing_if_a_score_is_not_finite():
    a, b = table((np.nan, 1)), table((0, 0))
    assert decide_by_rank(a, b, table((1, 1)), table((2, 2))).choice.tolist() == [""]


SCORES = st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 6), min_size=1, max_size=20)
MIRRORED = {"a": "b", "b": "a", "tie": "tie", "": ""}


def assert_mirrored(left: Decisions, right: Decisions) -> None:
    assert [MIRRORED[choice] for choice in left.choice] == right.choice.tolist()
    assert left.margin.tolist() == right.margin.tolist()
    assert left.p_a == pytest.approx(1 - right.p_a, abs=1e-12)


@pytest.mark.parametrize("rule", WITHOUT_RANKS)
@given(rows=SCORES, band=st.sampled_from([0.0, 1.0, 30.0]))
def test_swapping_a_and_b_mirrors_the_decision(rule: str, rows: list[tuple[float, ...]], band: float):
    n = 1 if rule == "single" else 3
    scores = np.array(rows)
    a, b = scores[:, :n], scores[:, 3 : 3 + n]
    assert_mirrored(decide(rule, a, b, np.full(n, 10.0), band), decide(rule, b, a, np.full(n, 10.0), band))


@given(rows=SCORES)
def test_swapping_a_and_b_mirrors_the_mean_rank(rows: list[tuple[float, ...]]):
    scores = np.array(rows)
    a, b = scores[:, :3], scores[:, 3:]
    ranks = (np.argsort(np.argsort(-scores, 0), 0) + 1).astype(np.float64)
    assert_mirrored(
        decide_by_rank(a, b, ranks[:, :3], ranks[:, 3:]),
        decide_by_rank(b, a, ranks[:, 3:], ranks[:, :3]),
    )


@pytest.mark.filterwarnings("error")
def test_the_smallest_temperatures_make_neither_a_warning_nor_an_infinite_margin():
    tiny = np.full(2, 5e-324)
    for rule in ("majority", "weighted"):
        decisions = decide(rule, table((1e30, 1.0), (0.0, 1.0)), table((0.0, 0.0), (1.0, 0.0)), tiny)
        assert decisions.choice.tolist() == ["a", "tie"]
        assert decisions.p_a.tolist() == [1.0, 0.5]
        assert np.isfinite(decisions.margin).all()


def test_a_new_rule_is_one_function_and_one_record(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    def least(scores: PairScores) -> np.ndarray:
        """The scorer whose difference is the smallest decides."""
        row = np.arange(len(scores.difference))
        return scores.difference[row, np.abs(scores.difference).argmin(1)]

    monkeypatch.setitem(
        RULES, "least", Rule(signed_margin=least, summary="the closest scorer", unit="the scorer's unit")
    )
    red, dim = add_image(store, (200, 0, 0)), add_image(store, (100, 0, 0))
    add_pair(store, add_prompt(store, "one"), red, dim)
    store.ingest()
    both = ("little_scorers:Redness", "little_scorers:Darkness")
    relabel(RelabelConfig(scorers=both, rule="least"), store)
    # redness 200 and 100, darkness 255 - 66.7 and 255 - 33.3: the smaller difference is that of darkness
    assert store.rows("select labeler, chosen, round(margin) from preferences") == [
        ("least:redness+darkness", dim, 33.0)
    ]
    with pytest.raises(UsageError, match="give --rule mean-rank, weighted, majority, unanimous, pareto or least"):
        RelabelConfig(scorers=both)


def test_help_names_every_rule_and_strategy_with_its_summary():
    helps = {field.name: field.help for field in config_fields(RelabelConfig)}
    for name, rule in RULES.items():
        assert f"{name} ({rule.summary})" in helps["rule"]
    for name, selection in SELECTIONS.items():
        assert f"{name} ({selection.summary})" in helps["select"]
    assert helps["tie_band"] == (
        "Margins up to this are ties: in the scorer's unit for single, majority, unanimous and pareto, in ranks for mean-rank, "
        "in logits for weighted."
    )


def test_the_documentation_has_every_rule_and_strategy_with_its_summary():
    text = " ".join((ROOT / "docs" / "choice-models.md").read_text().split())
    for name, rule in RULES.items():
        assert f"| `{name}` | {rule.summary} | {rule.unit} |" in text
    for name, selection in SELECTIONS.items():
        assert f"| `{name}` | {selection.summary} |" in text
