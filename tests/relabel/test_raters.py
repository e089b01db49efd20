"""Raters whose answers are known, one of them random and one always left, come out as what they are."""

import json
import re
from collections.abc import Sequence
from uuid import UUID

import numpy as np
import pytest
from content import add_label, add_labeler, fill
from pages import label_server
from prefloop.cli import app
from prefloop.core.stats import wilson
from prefloop.relabel.annotate.rater_text import alpha_line, rater_columns, rater_notes
from prefloop.relabel.annotate.raters import Rater, RaterReport, Row, rated_pairs, raters, report
from prefloop.store import PairStore
from typer.testing import CliRunner

N = 100
TRUTH = ["ab"[n % 2] for n in range(N)]
LEFT = ["ab"[n // 2 % 2] for n in range(N)]
"""On the left is the better image in half of the pairs: each of the four combinations is 25 times there."""


def rows(labeler: str, choices: Sequence[str], left: Sequence[str] = LEFT, ms: int | None = 1000) -> list[Row]:
    """One answer to each pair, a pair for each prompt."""
    return [
        (labeler, UUID(int=n), UUID(int=1000 + n), choice, side, ms)
        for n, (choice, side) in enumerate(zip(choices, left, strict=False))
    ]


def measured(*of_raters: list[Row]) -> RaterReport:
    return report(rated_pairs(row for rated in of_raters for row in rated))


def by_name(result: RaterReport) -> dict[str, Rater]:
    return {rater.labeler: rater for rater in result.raters}


def mostly_right() -> list[str]:
    """The truth, except for every tenth pair, in which it is b and this says a."""
    return ["a" if n % 10 == 9 else choice for n, choice in enumerate(TRUTH)]


@pytest.fixture(scope="module")
def three() -> RaterReport:
    return measured(rows("right", TRUTH), rows("mostly", mostly_right()), rows("lefty", LEFT))


def test_a_rater_who_always_chooses_the_left_agrees_by_chance(three: RaterReport):
    lefty = by_name(three)["lefty"]
    assert lefty.left is not None
    assert lefty.kappa is not None
    assert lefty.agreement is not None
    # Wilson's lower end of 100 of 100 is 100 / 103.8415
    assert (lefty.left.value, lefty.left.low) == (1.0, pytest.approx(100 / 103.8415, abs=1e-4))
    # with "right" 50 of 100. With "mostly" 45 of the 90 pairs in which that is right, and 5 of the 10 others
    assert (lefty.agreement.value, lefty.kappa.value) == (0.5, 0.0)
    assert lefty.verdict == "no better than chance"
    (left_note, random_note) = rater_notes(three)
    assert left_note == "lefty chose the left image in 100 % of 100 answers, which is more often than by chance"
    assert random_note.startswith("lefty cannot be told from a rater who answers at random: kappa 0.00 (")
    assert random_note.endswith("100 shared pairs of 100 prompts")


def test_consistent_raters_agree_beyond_chance(three: RaterReport):
    right, mostly = by_name(three)["right"], by_name(three)["mostly"]
    for rater in (right, mostly):
        assert rater.agreement is not None
        assert rater.kappa is not None
        # 90 of 100 with each other and 50 of 100 with "lefty": 0.7. "right" and "lefty" say a half of the time: chance ½
        assert (rater.agreement.value, rater.kappa.value) == (pytest.approx(0.7), pytest.approx(0.4))
        assert (rater.verdict, rater.n_others, rater.n_shared) == ("better than chance", 2, 100)
    assert right.left is not None
    assert (right.left.value, right.left.low, right.left.high) == (0.5, *wilson(0.5, 100))
    pairs = {(pair.labeler, pair.other): pair for pair in three.between}
    both = pairs["mostly", "right"]
    assert both.kappa is not None
    # 90 of 100; "mostly" says a 60 times, "right" 50: chance 0.6 · 0.5 + 0.4 · 0.5
    assert (both.n, both.agreement.value, both.kappa.value) == (100, pytest.approx(0.9), pytest.approx(0.8))
    assert 0.65 < both.kappa.low < 0.8 < both.kappa.high < 0.95
    assert set(pairs) == {("mostly", "right"), ("lefty", "mostly"), ("lefty", "right")}


def test_alpha_over_three_raters_is_the_one_worked_by_hand(three: RaterReport):
    # all three say the same 45 times; 55 pairs are split two to one: 4 differing ordered pairs over 2 = 2 each, 110
    # of 300 labels 160 are a and 140 b: (90,000 - 25,600 - 19,600) / 299 = 149.83 expected
    assert three.alpha is not None
    assert three.alpha.value == pytest.approx(1 - 110 / (44_800 / 299))
    assert alpha_line(three).endswith("100 pairs of 100 prompts with two labels or more")


def random_choices(seed: int, n: int = N) -> list[str]:
    return np.random.default_rng(seed).choice(["a", "b", "tie"], n, p=[0.4, 0.4, 0.2]).tolist()


@pytest.mark.slow(reason="simulates many raters")
def test_a_rater_who_answers_at_random_is_found_nineteen_times_in_twenty():
    verdicts = []
    for seed in range(20):
        found = by_name(
            measured(rows("right", TRUTH), rows("mostly", mostly_right()), rows("random", random_choices(seed)))
        )
        assert {found["right"].verdict, found["mostly"].verdict} == {"better than chance"}
        verdicts.append(found["random"].verdict)
    assert verdicts.count("no better than chance") >= 18


def test_two_raters_cannot_tell_which_of_them_is_random():
    notes = rater_notes(measured(rows("right", TRUTH), rows("random", random_choices(0))))
    assert [note.split()[0] for note in notes] == ["random", "right"]
    assert all("it may be either of the two" in note for note in notes)


def test_a_rater_who_always_says_tie_is_no_better_than_chance():
    found = by_name(measured(rows("right", ["tie", *TRUTH[1:]]), rows("bored", ["tie"] * N)))
    assert (found["bored"].verdict, found["bored"].ties, found["bored"].left) == ("no better than chance", 1.0, None)


def test_a_rater_who_turns_everything_round_is_worse_than_chance():
    other = {"a": "b", "b": "a"}
    result = measured(rows("right", TRUTH), rows("wrong", [other[choice] for choice in TRUTH]))
    assert by_name(result)["wrong"].verdict == "worse than chance"
    assert any(note.startswith("wrong agrees with the others less than by chance") for note in rater_notes(result))


def test_too_few_shared_pairs_are_said_to_be_too_few():
    # 46 random answers: one pair fewer than what shows 70 % agreement
    few = measured(rows("right", TRUTH), rows("random", random_choices(1, 46)))
    enough = measured(rows("right", TRUTH), rows("random", random_choices(1, 47)))
    assert by_name(few)["random"].verdict == "too few shared pairs"
    assert by_name(enough)["random"].verdict == "no better than chance"
    (note, _) = rater_notes(few)
    assert "cannot be said from 46 shared pairs of 46 prompts; it takes about 47 pairs, and 10 prompts" in note
    # few pairs that agree are enough to be told from random ones
    assert by_name(measured(rows("right", TRUTH), rows("same", TRUTH[:20])))["same"].verdict == "better than chance"


def test_many_pairs_of_few_prompts_are_too_few():
    moved = [(name, pair, UUID(int=pair.int % 9), *rest) for name, pair, _, *rest in rows("same", TRUTH)]
    truth = [(name, pair, UUID(int=pair.int % 9), *rest) for name, pair, _, *rest in rows("right", TRUTH)]
    found = by_name(measured(truth, moved))["same"]  # type: ignore[arg-type]
    assert (found.n_shared, found.n_shared_prompts, found.verdict) == (100, 9, "too few shared pairs")


def test_without_others_nothing_is_said_about_agreement():
    result = measured(rows("alone", TRUTH))
    (alone,) = result.raters
    assert (alone.verdict, alone.kappa, alone.agreement, result.alpha) == ("no shared pairs", None, None, None)
    assert "--overlap 2" in rater_notes(result)[0]
    assert alpha_line(result) == "Krippendorff's alpha: no pair was labelled by two people"


def revisions(*answers: tuple[str, str | None], pair: int = 0) -> list[Row]:
    """(choice, shown_left) of one rater and pair, in order; 500 ms, 1000 ms, …"""
    return [
        ("ann", UUID(int=pair), UUID(int=1000 + pair), choice, left, 500 * n if left else None)
        for n, (choice, left) in enumerate(answers, 1)
    ]


@pytest.mark.parametrize(
    ("answers", "current", "kept"),
    [
        ([("a", "a")], "a", ["a"]),
        ([("a", "a"), ("b", "b")], "b", ["a", "b"]),  # shown again
        ([("a", "a"), ("skip", None)], None, []),  # undone
        ([("a", "a"), ("skip", None), ("b", "a")], "b", ["b"]),  # undone, and answered again
        ([("a", "a"), ("b", "a"), ("a", None)], "a", ["a"]),  # the repetition undone
        ([("a", "a"), ("b", "a"), ("a", None), ("skip", None)], None, []),  # both undone
        ([("a", None)], "a", []),  # imported
        ([("skip", "a")], "skip", ["skip"]),
    ],
)
def test_undone_answers_do_not_count(answers: list[tuple[str, str | None]], current: str | None, kept: list[str]):
    (rated,) = rated_pairs(revisions(*answers))
    assert (rated.current, [answer.choice for answer in rated.answers]) == (current, kept)


def test_repeats_times_ties_and_skips_are_counted():
    result = measured(
        revisions(("a", "a"), ("a", "b"), ("b", "b"), pair=0),  # the same, then another
        revisions(("tie", "a"), ("tie", "b"), pair=1),
        revisions(("skip", "a"), pair=2),
        revisions(("b", "a"), pair=3),
    )
    (ann,) = result.raters
    assert ann.self_agreement is not None
    # three pairs of answers in a row; prompt 0: one of two the same, prompt 1: one of one; mean 0.75
    assert (ann.n_repeats, ann.self_agreement.value, ann.self_agreement.has_interval) == (3, 0.75, False)
    assert (ann.n_labels, ann.n_skips, ann.ties) == (3, 1, pytest.approx(1 / 3))  # now b, tie, b
    # left: a on the left and chosen; b on the left and a chosen; b on the left and chosen; a on the left and b chosen
    assert ann.left is not None
    assert (ann.n_sides, ann.left.value) == (4, 0.5)
    # 500, 1000, 1500; 500, 1000; 500; 500
    assert ann.seconds == 0.5
    assert rater_columns(result)[0]["same when repeated"] == "75.0 % of 3"


@pytest.mark.slow(reason="simulates many raters")
def test_the_page_and_the_command_agree_about_a_rater(store: PairStore):
    """Through the page: answers, an undone one, and repeats."""
    pairs = fill(store, 30)
    server = label_server(store, repeats=0.5, seed=3, overlap=2)
    ann = server.enter("ann")
    ann.choose("tie").choose("undo")
    for _ in range(24):
        ann.choose("left")
    ben = server.enter("ben")
    for _ in range(30):
        ben.choose("right")
    store.ingest()
    found = by_name(raters(store))
    one, other = found["human:ann"], found["human:ben"]
    assert one.left is not None
    assert other.left is not None
    assert (one.n_sides, one.left.value, one.ties, one.seconds) == (24, 1.0, 0.0, 1.2)
    assert (other.n_sides, other.left.value) == (30, 0.0)
    assert one.n_labels + one.n_repeats == 24
    assert one.n_repeats > 2
    ended = CliRunner().invoke(app, ["raters", "--json", "--store", str(store.path)])
    assert ended.exit_code == 0, ended.output
    printed = json.loads(ended.stdout)
    assert [rater["labeler"] for rater in printed["raters"]] == ["human:ann", "human:ben"]
    assert printed["raters"][0]["left"]["value"] == 1.0
    table = CliRunner().invoke(app, ["raters", "--store", str(store.path)]).stdout
    assert "100.0 % (86.2 to 100.0)" in table  # Wilson's lower end of 24 of 24: 24 / 27.84
    assert "human:ann chose the left image in 100 % of 24 answers" in table
    assert max(len(line) for line in table.splitlines() if line[:1] in "┏┃┡│└") <= 100
    for name in rater_columns(raters(store))[0]:
        assert re.search(rf"┃ {re.escape(name)} ", table), name
    assert len(pairs) == 30


def test_a_queue_selects_whose_labels_count(store: PairStore):
    pairs = fill(store, 4)
    for labeler, kind in (("human:ann", "human"), ("scorer", "ai")):
        add_labeler(store, labeler, kind)
        for pair in pairs:
            add_label(store, pair, labeler, "a")
    store.ingest()
    (everything,) = raters(store).raters  # a scorer is not a rater
    assert everything.n_labels == 4
    query = f"select pair_id from pairs where pair_id = '{pairs[0]}'"
    ended = CliRunner().invoke(app, ["raters", "--json", "--queue", query, "--store", str(store.path)])
    assert [rater["n_labels"] for rater in json.loads(ended.stdout)["raters"]] == [1]


def test_a_store_without_raters_says_so(store: PairStore):
    fill(store, 1)
    ended = CliRunner().invoke(app, ["raters", "--store", str(store.path)])
    assert "no person has labelled these pairs" in ended.stdout
