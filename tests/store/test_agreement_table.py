"""`store agreement`: every prompt weighs the same, intervals are over prompts, evaluations and rounds apart."""

import datetime
import json
from pathlib import Path
from uuid import UUID

import pytest
from content import add_image, add_label, add_labeler, add_pair, add_prompt, fill
from example_store import example_store
from prefloop.cli import app
from prefloop.core.stats import wilson
from prefloop.store import PairStore
from prefloop.store.agreement import agreement, for_terminal
from typer.testing import CliRunner


def labelled(store: PairStore, pairs: list[UUID], **choices: str) -> None:
    """One letter for each pair: a, b, t for a tie."""
    for labeler, letters in choices.items():
        add_labeler(store, labeler)
        for pair, letter in zip(pairs, letters, strict=True):
            add_label(store, pair, labeler, {"t": "tie"}.get(letter, letter))
    store.ingest()


def test_every_prompt_weighs_the_same(store: PairStore):
    pairs = [
        add_pair(store, add_prompt(store, text), add_image(store, (red, 0, 0)), add_image(store, (0, red, 0)))
        for text, red in (("one", 10), ("one", 20), ("one", 30), ("two", 40))
    ]
    labelled(store, pairs, x="aaba", y="aabb")
    (row,) = agreement(store).to_pylist()
    # 3 of 3 on "one", 0 of 1 on "two": one half, not 3/4
    assert (row["n"], row["n_prompts"], row["agree"]) == (4, 2, 0.5)
    # x says a 2/3 and 1: 5/6; y 2/3 and 0: 1/3; chance 5/6 · 1/3 + 1/6 · 2/3 = 7/18
    assert row["kappa"] == pytest.approx((1 / 2 - 7 / 18) / (1 - 7 / 18))
    assert (row["agree_low"], row["kappa_high"]) == (None, None)  # fewer than ten prompts


def test_intervals_hold_the_number_and_are_of_prompts(store: PairStore):
    labelled(store, fill(store, 20), x="ab" * 10, y="ab" * 8 + "baba", z="ab" * 10)
    rows = {(row["labeler"], row["other"]): row for row in agreement(store).to_pylist()}
    row = rows["x", "y"]
    # 16 of 20 the same; each says a and b equally often: kappa is 2 · 0.8 - 1
    assert (row["agree"], row["kappa"]) == (0.8, pytest.approx(0.6))
    # the standard deviation of a mean of 20 is sqrt(0.8 · 0.2 / 20) = 0.089; two of them on each side
    assert 0.55 <= row["agree_low"] <= 0.67
    assert 0.93 <= row["agree_high"] <= 1.0
    assert row["kappa_low"] < 0.6 < row["kappa_high"]
    same = rows["x", "z"]  # no spread to resample: Wilson's interval of 20 of 20
    assert (same["agree_low"], same["agree_high"]) == pytest.approx(wilson(1.0, 20))


def test_labelers_of_evaluations_are_listed_on_request_and_last(tmp_path: Path):
    store = example_store(tmp_path / "pairs")
    people = [("human:ann", "human:ann"), ("human:ann", "human:ben"), ("human:ann", "pickscore")]
    people += [("human:ben", "pickscore")]
    asked = [(row["labeler"], row["other"]) for row in agreement(store).to_pylist()]
    assert asked == people
    both = [(row["labeler"], row["other"]) for row in agreement(store, evaluations=True).to_pylist()]
    assert both == [*people, ("eval:clip@1", "eval:hps@2.1")]


def test_rounds_have_rows_of_their_own(store: PairStore):
    times = {"started": datetime.datetime(2026, 1, 1), "updated": datetime.datetime(2026, 1, 1)}
    for number in (1, 2):
        row = {"run_id": UUID(int=number), "kind": "round", "status": "done", "versions": "{}", "parents": []}
        store.append("runs", [row | times | {"config": json.dumps({"round": number})}])
    pairs = [
        add_pair(
            store, add_prompt(store, str(red)), add_image(store, (red, 0, 0)), add_image(store, (0, red, 0)), run_id=run
        )
        for red, run in ((1, UUID(int=1)), (2, UUID(int=1)), (3, UUID(int=2)), (4, None))
    ]
    labelled(store, pairs, x="abaa", y="aabt")
    rows = agreement(store, by_round=True).to_pylist()
    # round 1: the first of two pairs; round 2: none of one; the last pair is of no round, and y ties it
    assert [(row["round"], row["n"], row["agree"], row["n_decided"]) for row in rows] == [
        (1, 2, 0.5, 2),
        (2, 1, 0.0, 1),
        (None, 1, 0.0, 0),
    ]
    assert agreement(store).to_pylist()[0]["n"] == 4


def test_the_command_prints_intervals_as_text_and_json_as_numbers(store: PairStore):
    labelled(store, fill(store, 20), x="ab" * 10, y="ab" * 8 + "baba")
    words = ["store", "agreement", "--store", str(store.path)]
    (row,) = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert list(row) == [
        *("labeler", "other", "n", "n_prompts", "agree", "agree_low", "agree_high", "kappa", "kappa_low", "kappa_high"),
        *("n_decided", "n_decided_prompts", "agree_decided", "agree_decided_low", "agree_decided_high"),
        *("kappa_decided", "kappa_decided_low", "kappa_decided_high"),
    ]
    table = CliRunner().invoke(app, [*words, "--by-round", "--evaluations"]).stdout
    assert f"0.80 ({row['agree_low']:.2f} to {row['agree_high']:.2f})" in table


def test_the_printed_table_fits_100_columns_and_says_all_of_it(store: PairStore):
    """Numbers over all pairs and over the decided ones are two rows, and revisions are left out unless two differ by theirs."""
    pairs = fill(store, 20)
    names = (
        "human:ann@work",
        "eval:aesthetics@57c9d55abb98",
        "eval:hps@0123456789ab",
        "eval:hps@ba9876543210",
    )
    labelled(store, pairs, **dict.fromkeys(names, "ab" * 9 + "at"))
    words = ["store", "agreement", "--by-round", "--evaluations", "--store", str(store.path)]
    lines = CliRunner().invoke(app, words).stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert " ".join(lines[1].replace("┃", " ").split()) == "labeler other round over pairs prompts agree kappa"
    table = for_terminal(agreement(store, evaluations=True)).to_pylist()
    assert {row["labeler"] for row in table} == {"human:ann@work", "eval:aesthetics", "eval:hps@0123456789ab", None}
    all_pairs, decided = [row for row in table if row["pairs"] in (20, 19)][-2:]
    low = wilson(1.0, 19)[0]
    assert (decided["labeler"], decided["over"], decided["prompts"]) == (None, "decided", 19)
    assert decided["agree"] == f"1.00 ({low:.2f} to 1.00)"
    assert (all_pairs["other"], all_pairs["over"], all_pairs["prompts"]) == ("eval:hps@ba9876543210", "all", 20)


def test_pairs_that_all_are_decided_have_one_row(store: PairStore):
    labelled(store, fill(store, 4), x="aabb", y="abbb")
    (row,) = for_terminal(agreement(store)).to_pylist()
    assert (row["over"], row["pairs"], row["agree"]) == ("all", 4, "0.75")


def test_a_store_without_shared_pairs_has_an_empty_table(store: PairStore):
    labelled(store, fill(store, 2), x="ab")
    assert agreement(store, by_round=True).num_rows == 0
    assert CliRunner().invoke(app, ["store", "agreement", "--json", "--store", str(store.path)]).stdout == "[]\n"
