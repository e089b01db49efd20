"""Agreement, accuracy, calibration and position bias come out as worked by hand; the page shows hostile text as text."""

import json
import re
from dataclasses import astuple, replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from content import (
    add_generation,
    add_image,
    add_label,
    add_labeler,
    add_pair,
    add_prompt,
    add_scores,
    fill,
    no_file_beyond,
)
from prefloop.cli import app
from prefloop.relabel.validation.metrics import (
    best_tie_band,
    by_margin,
    calibration,
    calibration_error,
    decided,
    tie_aware,
    tie_aware_accuracy,
    verdict,
)
from prefloop.relabel.validation.quality_text import quality_lines, tie_verdict_text
from prefloop.relabel.validation.report import write_quality
from prefloop.relabel.validation.validate import disagreements, positions, validate_scorers
from prefloop.store import PairStore, UsageError, prompt_id
from prefloop.store.agreement import agreement
from prefloop.store.pairstore import new_pair
from typer.testing import CliRunner


def say(store: PairStore, pairs: list, **choices: str) -> None:
    """Labels by labeler: a letter for each pair, t is a tie, s a skip and - nothing."""
    words = {"a": "a", "b": "b", "t": "tie", "s": "skip"}
    for labeler, letters in choices.items():
        add_labeler(store, labeler)
        for pair, letter in zip(pairs, letters, strict=True):
            if letter != "-":
                add_label(store, pair, labeler, words[letter])
    store.ingest()


def test_agreement_is_counted_with_ties_and_without(store: PairStore):
    pairs = fill(store, 10)
    say(store, pairs, x="aaaaabbbts", y="aaaabbbatt", z="-" * 10)
    (row,) = agreement(store).to_pylist()
    # nine pairs, without the skipped one: same in aaaa, bb, t: 7
    # x: 5 a, 3 b, 1 tie; y: 5 a, 3 b, 1 tie of 9; chance (25 + 9 + 1) / 81
    chance = 35 / 81
    assert (row["n"], row["agree"]) == (9, pytest.approx(7 / 9))
    assert row["kappa"] == pytest.approx((7 / 9 - chance) / (1 - chance))
    # decided by both: eight, same in 6; x: 5 a 3 b; y: 5 a 3 b; chance 34/64
    assert (row["n_decided"], row["agree_decided"]) == (8, pytest.approx(6 / 8))
    assert row["kappa_decided"] == pytest.approx((6 / 8 - 34 / 64) / (1 - 34 / 64))


def test_labelers_that_always_say_the_same_have_no_kappa(store: PairStore):
    say(store, fill(store, 3), x="aaa", y="aaa", z="ttt")
    rows = {(row["labeler"], row["other"]): row for row in agreement(store).to_pylist()}
    assert (rows["x", "y"]["agree"], rows["x", "y"]["kappa"]) == (1.0, None)
    # x says a and z tie: they never agree, and by chance never would; none was decided by both
    assert (rows["x", "z"]["agree"], rows["x", "z"]["kappa"], rows["x", "z"]["n_decided"]) == (0.0, 0.0, 0)
    assert rows["x", "z"]["agree_decided"] is None


def test_store_agreement_prints_what_it_finds(store: PairStore):
    say(store, fill(store, 4), x="aabb", y="abbb")
    ended = CliRunner().invoke(app, ["store", "agreement", "--json", "--store", str(store.path)])
    (row,) = json.loads(ended.stdout)
    # 3 of 4 the same; chance (2·1 + 2·3) / 16 = 0.5
    assert (row["n"], row["agree"], row["kappa"]) == (4, 0.75, 0.5)
    table = CliRunner().invoke(app, ["store", "agreement", "--store", str(store.path)]).stdout
    assert "0.75" in table


def test_a_tie_of_one_side_counts_one_half():
    preferred = np.array([1, 0, 0.5, 1, 0.5, 1])
    difference = np.array([2, 3, 0.4, 0.3, 9, -1.0])
    # right, wrong, tie for a tie, tie for a choice, choice for a tie, wrong
    assert tie_aware_accuracy(preferred, difference, 0.5).tolist() == [1, 0, 1, 0.5, 0.5, 0]


def test_the_best_tie_band_is_the_best_of_all_bands():
    rng = np.random.default_rng(0)
    for _ in range(30):
        difference = rng.integers(-4, 5, 12).astype(float)  # equal sizes among them
        preferred = rng.choice([0, 0.5, 1], 12)
        band = best_tie_band(preferred, difference)
        every = {one: tie_aware_accuracy(preferred, difference, one).mean() for one in [0.0, *np.abs(difference)]}
        assert every[band] == max(every.values())
        assert band == min(one for one, mean in every.items() if mean == every[band])
    assert best_tie_band(np.array([]), np.array([])) == 0.0


def test_the_interval_is_over_prompts_and_not_over_pairs():
    """Ten prompts of 100 pairs each, all right or all wrong: ten facts, not a thousand."""
    prompt = np.repeat([f"{n}" for n in range(10)], 100)
    preferred = np.tile([1.0, 0.0], 500)
    difference = np.repeat([1.0, -1.0], 500) * (2 * preferred - 1)
    found = decided(preferred, difference, prompt)
    assert found is not None
    assert found.kappa is not None
    assert (found.n, found.n_prompts, found.accuracy.value, found.kappa.value) == (1000, 10, 0.5, 0.0)
    for estimate in (found.accuracy, tie_aware(preferred, difference, prompt, 0.0).accuracy):
        # the standard error of ten coins is 0.158: an interval of ±0.31 or so; of a thousand it would be ±0.03
        assert 0.1 <= estimate.low <= 0.3
        assert 0.7 <= estimate.high <= 0.9
    assert -0.8 <= found.kappa.low <= -0.4
    assert 0.4 <= found.kappa.high <= 0.8
    with pytest.raises(ValueError, match="no pair"):
        tie_aware(np.array([]), np.array([]), np.array([]), 0.0)


def test_prompts_that_all_agree_have_wilsons_interval_and_few_prompts_have_none():
    preferred, prompt = np.array([1.0, 0.0] * 5), np.arange(10).astype(str)
    found = decided(preferred, preferred - 0.5, prompt)
    assert found is not None
    assert found.kappa is not None
    assert (found.accuracy.value, found.kappa.value) == (1.0, 1.0)
    assert (found.accuracy.high, found.kappa.high) == (pytest.approx(1.0), pytest.approx(1.0))
    low = 10 / (10 + 1.959963984540054**2)  # Wilson's lower end of n of n
    assert found.accuracy.low == pytest.approx(low)
    assert found.kappa.low == pytest.approx(2 * low - 1)  # half of the pairs are a: chance is ½
    assert tie_aware(preferred, preferred - 0.5, prompt, 0.0).accuracy.low == pytest.approx(low)
    few = decided(preferred[:9], preferred[:9] - 0.5, prompt[:9])
    assert few is not None
    assert few.kappa is not None
    assert (few.n_prompts, few.accuracy.value, few.kappa.value) == (9, 1.0, 1.0)
    tied = tie_aware(preferred[:9], preferred[:9] - 0.5, prompt[:9], 0.0)
    assert [each.has_interval for each in (few.accuracy, few.kappa, tied.accuracy)] == [False] * 3


def test_every_prompt_weighs_the_same_in_accuracy_kappa_and_chance():
    # prompt x: one pair, right, a chosen; prompt y: three pairs, all wrong, b chosen
    preferred, difference = np.array([1.0, 0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0, 1.0])
    prompt = np.array(list("xyyy"))
    found = decided(preferred, difference, prompt)
    assert found is not None
    assert found.kappa is not None
    assert found.accuracy.value == 0.5  # over pairs it would be 1/4
    # the scorer always says a, the labeler half of the time: chance ½, kappa (½ - ½) / (1 - ½)
    assert found.kappa.value == 0.0
    tied = tie_aware(preferred, difference, prompt, 0.0)
    assert (tied.accuracy.value, tied.always_tie, tied.chance) == (0.5, 0.5, 0.5)


def test_ties_of_the_labeler_are_excluded_and_those_of_the_scorer_count_one_half():
    preferred = np.array([1, 1, 1, 0, 0, 0.5, 0.5])
    difference = np.array([2, 3, -1, -1, 0, 5, -5.0])
    found = decided(preferred, difference, np.array(list("abcdefg")))
    assert found is not None
    assert found.kappa is not None
    # right, right, wrong, right, ½ of five; the scorer says a in 2 + ½ of them, the labeler in 3
    assert (found.n, found.accuracy.value) == (5, pytest.approx(3.5 / 5))
    chance = 0.5 * 0.6 + 0.5 * 0.4
    assert found.kappa.value == pytest.approx((0.7 - chance) / (1 - chance))
    assert decided(np.array([0.5]), np.array([1.0]), np.array(["a"])) is None
    same = decided(np.ones(3), np.ones(3), np.array(list("abc")))
    assert same is not None
    assert (same.accuracy.value, same.kappa) == (1.0, None)


def test_chance_and_always_tie_stand_beside_accuracy_with_ties():
    preferred = np.array([1, 0, 0.5, 0.5])
    difference = np.array([3, 1, 0.1, -2.0])
    found = tie_aware(preferred, difference, np.array(list("abcd")), 0.5)
    # right, wrong, right, ½
    assert (found.accuracy.value, found.always_tie) == (2.5 / 4, 3 / 4)
    # the scorer says a, a, tie, b; each of its words against the labeler's shares ¼, ½, ¼ of b, tie, a:
    # a scores ¼ + ¼, b the same, a tie ½ + ¼
    assert found.chance == pytest.approx(0.75 * 0.5 + 0.25 * 0.75)


def test_kappa_with_ties_is_what_is_above_chance_and_always_tie_is_subtracted():
    # as above, on ten times as many prompts: accuracy 0.625, always tie 0.75, chance 0.5625
    preferred, difference = np.tile([1, 0, 0.5, 0.5], 10), np.tile([3, 1, 0.1, -2.0], 10)
    found = tie_aware(preferred, difference, np.arange(40).astype(str), 0.5)
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx((0.625 - 0.5625) / (1 - 0.5625))
    assert found.kappa.low < 0 < found.kappa.high
    # per prompt ½, -½, 0, -½: right against a tie, wrong, tie, ½ against 1
    assert found.above_always_tie.value == pytest.approx(-0.125)
    assert tie_verdict_text(found) == "neither better than chance nor than always a tie"
    right = tie_aware(preferred, preferred - 0.5, np.arange(40).astype(str), 0.1)
    assert right.kappa is not None
    assert (right.accuracy.value, right.kappa.value, right.above_always_tie.value) == (1.0, 1.0, 0.25)
    assert tie_verdict_text(right) == "better than chance and than always a tie"
    # ties are told from choices, and three choices in ten turned round: above chance, and below always tie
    preferred = np.tile([1, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 0], 10)
    difference = np.tile([1, -1, 0, 0, 0, 0, 1, -1, -1.0, 1], 10)
    mixed = tie_aware(preferred, difference, np.arange(100).astype(str), 0.5)
    # 1 · 6, ½ · 2, 0 · 2 of ten; always tie: ½ · 4 + 6; chance: said a 3, b 3, tie 4; wanted 2, 2, 6
    # (0.3 · 0.2 · 2) + 0.4 · 0.6 + ½ · (0.6 · 0.6 + 0.4 · 0.4) = 0.12 + 0.24 + 0.26 = 0.62
    assert (mixed.accuracy.value, mixed.always_tie, mixed.chance) == (0.7, 0.8, pytest.approx(0.62))
    assert tie_verdict_text(mixed) == "better than chance, not better than always a tie"


@pytest.mark.parametrize(
    ("n_right", "n", "expected"),
    [
        # Wilson's interval of independent pairs: 60 of 100 is 50.2 to 69.1 %, 59 of 100 is 49.2 to 68.1 %
        (70, 100, "better than chance"),
        (55, 100, "not better than chance"),
        (30, 100, "worse than chance"),
        (100, 100, "better than chance"),
        (9, 9, "too few prompts to tell"),
        (50, 100, "not better than chance"),
    ],
)
def test_a_scorer_is_better_than_chance_only_if_its_interval_is(n_right: int, n: int, expected: str):
    preferred = np.tile([1.0, 0.0], n)[:n]
    difference = np.where(np.arange(n) < n_right, 1, -1) * (2 * preferred - 1)
    found = decided(preferred, difference, np.arange(n).astype(str))
    assert found is not None
    assert verdict(found) == expected
    # a labeler who always chooses a: kappa is 0 or undefined, and the accuracy decides
    always_a = decided(np.ones(n), np.where(np.arange(n) < n_right, 1.0, -1.0), np.arange(n).astype(str))
    assert always_a is not None
    assert verdict(always_a) == expected


def test_agreement_on_the_usual_side_is_not_better_than_chance():
    """Both choose a in 90 of 100 pairs, and never b together: accuracy 80 %, by chance 0.9 · 0.9 + 0.1 · 0.1 = 82 %."""
    preferred, difference = np.ones(100), np.ones(100)
    preferred[:10], difference[10:20] = 0, -1
    found = decided(preferred, difference, np.arange(100).astype(str))
    assert found is not None
    assert found.accuracy.low > 0.5
    assert verdict(found) != "better than chance"


def test_prompts_that_are_all_half_right_are_not_better_than_chance():
    # two pairs of each of 20 prompts, one right and one wrong: no spread over prompts
    preferred, difference = np.tile([1.0, 1.0, 0.0, 0.0], 10), np.tile([1.0, -1.0], 20)
    found = decided(preferred, difference, np.repeat(np.arange(20), 2).astype(str))
    assert found is not None
    assert found.accuracy.value == 0.5
    assert verdict(found) == "not better than chance"


def test_accuracy_by_margin_has_three_bins_of_equal_size():
    difference = np.array([0.1, -0.2, 0.3, -1.0, 2.0, -3.0, 10.0, 20.0, -30.0, 5.0])
    #                      right wrong right  right right wrong  right right right  a tie: in no bin
    preferred = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.5])
    small, middle, large = by_margin(preferred, difference, np.arange(10).astype(str))
    assert [(one.n, one.smallest, one.largest) for one in (small, middle, large)] == [
        (3, 0.1, 0.3),
        (3, 1.0, 3.0),
        (3, 10.0, 30.0),
    ]
    accuracies = [one.accuracy.value for one in (small, middle, large)]
    assert accuracies == pytest.approx([2 / 3, 2 / 3, 1.0])
    assert [one.n for one in by_margin(np.ones(6), np.ones(6), np.arange(6).astype(str))] == [6]  # equal: together
    assert by_margin(np.array([0.5]), np.ones(1), np.array(["x"])) == []


def test_images_of_one_model_are_measured_apart_from_those_of_two(store: PairStore):
    """Right on the pairs of one model, wrong on those of two, and one pair of unknown models."""
    models = [UUID(int=1), UUID(int=2)]
    store.append("models", [{"model_id": model, "name": "same name", "config": "{}"} for model in models])
    pairs, scores = [], {}
    for number, kind in enumerate(["one", "one", "two", "two", "two", "unknown"]):
        prompt = add_prompt(store, f"prompt {number}")
        a, b = sorted(add_image(store, (value, number, 0)) for value in (50, 150))
        if kind != "unknown":
            add_generation(store, prompt, models[0], a)
            add_generation(store, prompt, models[kind == "two"], b)
        pairs.append(add_pair(store, prompt, a, b))
        scores |= {(prompt, a): float(kind == "one"), (prompt, b): 0.5}
    add_scores(store, "some@1", scores)
    say(store, pairs, **{"human:me": "aaaaaa"})
    (found,) = validate_scorers(store, "human:me")
    assert found.one_model is not None
    assert found.two_models is not None
    assert found.decided is not None
    assert (found.one_model.n, found.one_model.accuracy.value) == (2, 1.0)
    assert (found.two_models.n, found.two_models.accuracy.value) == (3, 0.0)
    assert (found.decided.n, found.verdict) == (6, "too few prompts to tell")
    lines = quality_lines(found)
    assert lines[0] == "some@1: too few prompts to tell"
    assert any(line.startswith("  images of two models: accuracy 0.0 % (") for line in lines)


def test_calibration_compares_confidence_with_what_was_chosen():
    # confidences sigmoid(1) = 0.731 four times, sigmoid(4) = 0.982 twice; the side is a and b in turn
    difference = np.array([1.0, -1.0, 1.0, -1.0, 4.0, -4.0])
    preferred = np.array([1.0, 0.0, 0.0, 0.5, 1.0, 0.0])  # right, right, wrong, tie; right, right
    few, sure = calibration(preferred, difference, 1.0)
    assert (few.n, few.observed, few.confidence) == (4, 2.5 / 4, pytest.approx(0.7310586))
    assert (sure.n, sure.observed, sure.confidence) == (2, 1.0, pytest.approx(0.9820138))
    expected = (4 * abs(0.7310586 - 0.625) + 2 * abs(0.9820138 - 1)) / 6
    assert calibration_error([few, sure]) == pytest.approx(expected)


def test_swapping_a_and_b_changes_no_measure():
    rng = np.random.default_rng(1)
    difference, preferred = rng.normal(size=60), rng.choice([0, 0.5, 1], 60)
    prompt = np.array([f"{n % 17}" for n in range(60)])
    tied, swapped = tie_aware(preferred, difference, prompt, 0.3), tie_aware(1 - preferred, -difference, prompt, 0.3)
    assert tied == replace(swapped, chance=tied.chance, kappa=tied.kappa)
    assert tied.chance == pytest.approx(swapped.chance)
    assert tied.kappa is not None
    assert swapped.kappa is not None
    assert astuple(tied.kappa) == pytest.approx(astuple(swapped.kappa))
    one, other = decided(preferred, difference, prompt), decided(1 - preferred, -difference, prompt)
    assert one is not None
    assert other is not None
    assert (one.accuracy, one.n) == (other.accuracy, other.n)
    assert one.kappa is not None
    assert other.kappa is not None
    assert astuple(one.kappa) == pytest.approx(astuple(other.kappa))
    assert calibration(preferred, difference, 1.0) == calibration(1 - preferred, -difference, 1.0)
    assert best_tie_band(preferred, difference) == best_tie_band(1 - preferred, -difference)


def labelled_store(store: PairStore, n: int = 40) -> list:
    """One pair for each prompt; the person likes the redder image, `right` scores redness and `wrong` its opposite."""
    pairs, red_is_a, right, wrong = [], [], {}, {}
    for number in range(n):
        prompt = add_prompt(store, f"prompt {number}")
        dim, red = (add_image(store, (value, number, 0)) for value in (50, 150))
        pairs.append(add_pair(store, prompt, dim, red))
        red_is_a.append(red < dim)
        right |= {(prompt, red): 1.0, (prompt, dim): 0.0}
        wrong |= {(prompt, red): 0.0, (prompt, dim): 1.0}
    add_scores(store, "right@1", right)
    add_scores(store, "wrong@1", wrong)
    say(store, pairs, **{"human:me": "".join("a" if one else "b" for one in red_is_a)})
    return pairs


@pytest.mark.slow(reason="scores in several runs")
def test_a_scorer_that_predicts_a_person_is_right_and_its_opposite_wrong(store: PairStore):
    labelled_store(store)
    right, wrong = validate_scorers(store, "human:me")
    assert right.decided is not None
    assert wrong.decided is not None
    assert (right.scorer, right.decided.accuracy.value, wrong.decided.accuracy.value) == ("right@1", 1.0, 0.0)
    assert (right.decided.n, right.decided.n_prompts) == (40, 40)
    # no tie was said: there is nothing to choose a tie band on
    assert (right.tie_aware, right.band_ties) == (None, 0)
    assert 5 <= right.band_decided <= 22  # about a third
    assert right.fitted_temperature is not None
    assert right.fitted_temperature < 1
    assert wrong.fitted_temperature is None


def random_rater(store: PairStore, n: int, share_of_ties: float, seed: int) -> None:
    """A pair for each prompt, scores that mean nothing, and a person who answers without looking."""
    rng = np.random.default_rng(seed)
    one, other = add_image(store, (1, 0, 0)), add_image(store, (2, 0, 0))
    store.add_prompts((f"prompt {number}", {}) for number in range(n))
    prompts = [prompt_id(f"prompt {number}") for number in range(n)]
    pairs = [new_pair(prompt, one, other, "generate") for prompt in prompts]
    rows = [pair for pair in pairs if pair]
    store.append("pairs", rows)
    scored = rng.normal(size=(n, 2)).tolist()
    scores = {
        (p, i): s for p, both in zip(prompts, scored, strict=True) for i, s in zip((one, other), both, strict=True)
    }
    add_scores(store, "noise@1", scores)
    add_labeler(store, "human:me")
    said = rng.choice(["a", "b", "tie"], n, p=[(1 - share_of_ties) / 2, (1 - share_of_ties) / 2, share_of_ties])
    store.append(
        "labels",
        [
            {"pair_id": row["pair_id"], "labeler": "human:me", "revision": 0, "choice": choice}
            for row, choice in zip(rows, said.tolist(), strict=True)
        ],
    )
    store.ingest()


def test_meaningless_scores_are_reported_as_meaningless(store: PairStore):
    """To a person who says tie of two pairs in five, always saying tie would score 70 %."""
    random_rater(store, 400, 0.4, seed=0)
    (noise,) = validate_scorers(store, "human:me")
    assert noise.decided is not None
    assert noise.decided.kappa is not None
    assert noise.decided.n > 200
    assert noise.decided.accuracy.low < 0.5 < noise.decided.accuracy.high
    assert noise.decided.accuracy.high - noise.decided.accuracy.low < 0.15
    assert noise.decided.kappa.low < 0 < noise.decided.kappa.high
    found = noise.tie_aware
    assert found is not None
    assert min(noise.band_decided, noise.band_ties) >= 20
    assert found.n + noise.band_decided + noise.band_ties == 400
    assert found.accuracy.value <= found.always_tie + 0.01  # no number without what it must be compared with
    assert found.accuracy.low < found.chance < found.accuracy.high
    (name, first, second, *_, last) = quality_lines(noise)
    assert name.startswith("noise@1: not better than chance; ")
    accuracy = noise.decided.accuracy
    assert (
        f"accuracy {100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}), by chance 50 %"
        in first
    )
    assert f"by chance 0; {noise.decided.n} decided pairs" in first
    assert f"always tie {100 * found.always_tie:.1f} %" in second
    assert second.endswith(f"chosen on {noise.band_decided + noise.band_ties} pairs of other prompts")
    assert "calibration error" in last
    assert "neither better than chance nor than always a tie" in second
    assert found.kappa is not None
    assert found.kappa.low < 0 <= found.kappa.high  # the best band takes nearly every pair for a tie
    assert found.above_always_tie.low < 0
    assert [each.n for each in noise.by_margin] == pytest.approx([noise.decided.n / 3] * 3, abs=1)


def test_the_page_says_when_a_scorer_is_not_better_than_chance(store: PairStore, tmp_path: Path):
    random_rater(store, 200, 0.4, seed=0)
    words = ["scorers", "quality", "--labeler", "human:me", "--output-dir", str(tmp_path), "--json"]
    ended = CliRunner().invoke(app, [*words, "--store", str(store.path)])
    (row,) = json.loads(ended.stdout)
    assert row["verdict"] == "not better than chance"
    assert (row["one_model"], row["two_models"], len(row["by_margin"])) == (None, None, 3)
    assert row["tie_aware"]["kappa"]["low"] < 0 < row["tie_aware"]["kappa"]["high"]
    page = (tmp_path / "quality.html").read_text()
    n = row["decided"]["n"]
    assert re.search(rf"not better than chance; {n} decided pairs show an accuracy of 6\d % or more", page)
    assert "neither better than chance nor than always a tie" in page


def test_nine_of_ten_intervals_of_meaningless_scores_hold_chance():
    """They are 95 % intervals: of 100 about five miss, and more than ten in one of 35 cases."""
    rng, held, kappas = np.random.default_rng(1), 0, 0
    prompt = np.array([f"{n}" for n in range(80)])
    for _ in range(100):
        found = decided(rng.choice([0.0, 0.5, 1.0], 80), rng.normal(size=80), prompt)
        assert found is not None
        assert found.kappa is not None
        held += found.accuracy.low <= 0.5 <= found.accuracy.high
        kappas += found.kappa.low <= 0 <= found.kappa.high
    assert held >= 90
    assert kappas >= 90


def test_a_tie_band_from_too_few_pairs_is_refused_and_says_why(store: PairStore):
    random_rater(store, 60, 0.4, seed=2)
    (noise,) = validate_scorers(store, "human:me")
    assert noise.tie_aware is None
    assert 0 < noise.band_ties < 20
    why = (
        "choosing a tie band takes 20 decided pairs and 20 ties, and the prompts set aside for it, one in 3, have "
        f"{noise.band_decided} and {noise.band_ties}"
    )
    assert why in quality_lines(noise)[2]
    ended = CliRunner().invoke(app, ["scorers", "quality", "--labeler", "human:me", "--store", str(store.path)])
    assert ended.exit_code == 0
    assert why in ended.stdout
    (row,) = json.loads(
        CliRunner().invoke(app, ["scorers", "quality", "--labeler", "human:me", "--json", "--store", str(store.path)]).stdout
    )  # fmt: skip
    assert (row["tie_aware"], row["decided"]["n"]) == (None, noise.decided.n if noise.decided else 0)


def test_quality_of_few_prompts_has_words_on_the_terminal_null_in_json_and_none_on_the_page(
    store: PairStore, tmp_path: Path
):
    labelled_store(store, 3)
    words = ["scorers", "quality", "--labeler", "human:me", "--store", str(store.path)]
    line = CliRunner().invoke(app, words).stdout.splitlines()[1]
    reason = "(no interval: 3 prompts, at least 10 are needed)"
    assert line.startswith(f"  accuracy 100.0 % {reason}, by chance 50 %; kappa ")
    (right, _) = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert right["decided"]["accuracy"] == {"value": 1.0, "low": None, "high": None}
    assert CliRunner().invoke(app, [*words, "--output-dir", str(tmp_path)]).exit_code == 0
    page = (tmp_path / "quality.html").read_text()
    assert '<strong>100.0 %</strong></td><td><span class="dim">none</span>' in page
    assert "nan" not in page


@pytest.mark.parametrize(
    ("scorers", "marked"), [(["red@1"], {"red@2"}), (["red@2", "blue@1"], {"red@2", "blue@1"}), ([], set())]
)
def test_a_scorer_that_made_the_labels_is_marked(
    store: PairStore, tmp_path: Path, scorers: list[str], marked: set[str]
):
    """By name: another revision of a scorer is not independent of it either."""
    pairs = fill(store, 2)
    images = {(p, image) for p, a, b in store.rows("select prompt_id, image_a, image_b from pairs") for image in (a, b)}
    for scorer in ("red@2", "blue@1"):
        add_scores(store, scorer, {key: float(number) for number, key in enumerate(sorted(images))})
    store.append("labelers", [{"labeler": "made", "kind": "ai", "config": json.dumps({"scorers": scorers})}])
    for pair in pairs:
        add_label(store, pair, "made", "a")
    store.ingest()
    measured = validate_scorers(store, "made")
    assert {quality.scorer for quality in measured if quality.in_sample} == marked
    heads = {quality_lines(quality)[0].split(":")[0] for quality in measured}
    assert heads == {f"{name} (in-sample" if name in marked else name for name in ("red@2", "blue@1")}
    page = write_quality(store, "made", measured, tmp_path / "quality").read_text()
    assert ("In-sample: the labels of made" in page) == bool(marked)
    assert len(re.findall(r"red@2 <span[^>]*>in-sample</span>", page)) == (4 if marked else 0) + (
        len(measured[0].by_margin) if marked else 0
    )


def test_quality_says_who_has_labels_and_what_was_scored(store: PairStore):
    labelled_store(store, 3)
    with pytest.raises(
        UsageError,
        match=r"no labels by 'human:you'; `prefloop label --labeler you --store .*; there are labels by human:me",
    ):
        validate_scorers(store, "human:you")
    unscored = add_pair(store, add_prompt(store, "new"), add_image(store, (9, 9, 9)), add_image(store, (8, 9, 9)))
    say(store, [unscored], other="a")
    with pytest.raises(UsageError, match="no scorer has scored the pairs that other labelled"):
        validate_scorers(store, "other")


def test_left_choices_are_counted_for_pairs_whose_sides_are_known(store: PairStore):
    pairs = fill(store, 4)
    add_labeler(store, "human:me")
    rows = zip(pairs, "aabb", ["a", "a", "b", "a"], strict=True)  # chosen and left: same, same, same, other
    columns = [{"pair_id": pair, "labeler": "human:me", "revision": 0, "choice": choice, "shown_left": left} for pair, choice, left in rows]  # fmt: skip
    store.append("labels", columns)
    store.ingest()
    (found,) = positions(store)
    assert (found.labeler, found.n, found.n_prompts, found.left.value) == ("human:me", 4, 4, 0.75)
    assert not found.left.has_interval  # of four prompts


def test_disagreements_begin_with_the_most_evenly_split_pair(store: PairStore):
    pairs = fill(store, 4)
    # agreed; one against three; two against two; a tie is on neither side
    say(store, pairs, w="aaab", x="aaat", y="aabt", z="abb-")
    assert [(pair.pair_id, pair.for_a, pair.for_b) for pair in disagreements(store, 9)] == [
        (pairs[2], ["w", "x"], ["y", "z"]),
        (pairs[1], ["w", "x", "y"], ["z"]),
    ]
    assert len(disagreements(store, 1)) == 1


def test_the_page_shows_hostile_text_as_text_and_every_image_it_names(store: PairStore, tmp_path: Path):
    prompt = add_prompt(store, "<script>alert(1)</script> \x1b[31m")
    one, other = add_image(store, (1, 0, 0)), add_image(store, (2, 0, 0))
    pair = add_pair(store, prompt, one, other)
    add_scores(store, "right@1", {(prompt, one): 1.0, (prompt, other): 0.0})
    say(store, [pair], **{"human:<b>": "a", "x$": "b"})
    words = ["scorers", "quality", "--labeler", "human:<b>", "--output-dir", str(tmp_path / "out")]
    ended = CliRunner().invoke(app, [*words, "--store", str(store.path)])
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.startswith("right@1")
    page = (tmp_path / "out" / "quality.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "default-src 'none'" in page
    for image in (one, other):
        assert f"images/{image.hex}.png" in page
        assert (tmp_path / "out" / "images" / f"{image.hex}.png").exists()
    assert (tmp_path / "out" / "calibration.png").stat().st_size > 1000
    assert CliRunner().invoke(app, [*words, "--store", str(store.path)]).exit_code == 0  # an earlier page is replaced
    with no_file_beyond(1000):  # a page that does not fit leaves the earlier one
        ended = CliRunner().invoke(app, [*words, "--store", str(store.path)])
    assert ended.exit_code == 1
    assert "quality.html" in ended.stderr
    assert (tmp_path / "out" / "quality.html").read_text() == page
    (tmp_path / "out" / "quality.html").write_text("mine")
    ended = CliRunner().invoke(app, [*words, "--store", str(store.path)])
    assert ended.exit_code == 2
    assert "quality.html is not part of a report that prefloop wrote; name another folder" in ended.stderr
    assert (tmp_path / "out" / "quality.html").read_text() == "mine"
