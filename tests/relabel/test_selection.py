"""best-worst labels one pair of each prompt; the others are not labelled."""

import json
from dataclasses import replace
from itertools import combinations
from uuid import UUID

import pytest
from content import add_image, add_pair, add_prompt
from prefloop.cli import app
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore
from prefloop.store.check import check
from test_relabel import REDNESS, labels
from typer.testing import CliRunner

BEST_WORST = replace(REDNESS, select="best-worst")


def red_pairs(store: PairStore) -> tuple[UUID, dict[str, UUID], dict[UUID, str]]:
    """A prompt, three images by name, and their three pairs with the names of their images."""
    prompt = add_prompt(store, "one")
    images = {name: add_image(store, (value, 0, 0)) for name, value in (("dim", 50), ("mid", 100), ("red", 200))}
    pairs = {add_pair(store, prompt, images[a], images[b]): f"{a}-{b}" for a, b in combinations(images, 2)}
    store.ingest()
    return prompt, images, pairs


def test_best_worst_labels_one_pair_of_each_prompt_and_counts_the_others_as_not_selected(store: PairStore):
    _, images, _ = red_pairs(store)
    summary = relabel(BEST_WORST, store)
    assert store.rows("select chosen, rejected, margin from preferences") == [(images["red"], images["dim"], 150.0)]
    assert summary["labels"]["undecided"] == 0
    assert (summary["new_labels"], summary["labels"]["not_selected"], summary["no_longer_selected"]) == (1, 2, 0)
    ended = CliRunner().invoke(
        app, ["relabel", "--scorer", "little_scorers:Redness", "--select", "best-worst", "--store", str(store.path)]
    )
    assert "labels of redness: 1 decided, 0 ties, 0 undecided, 2 not selected; 0 new" in ended.stdout


@pytest.mark.slow(reason="scores in several runs")
def test_a_pair_that_is_no_longer_best_and_worst_keeps_its_label_and_is_counted(store: PairStore):
    prompt, images, _ = red_pairs(store)
    relabel(BEST_WORST, store)
    redder = add_image(store, (250, 0, 0))
    add_pair(store, prompt, images["dim"], redder)
    store.ingest()
    summary = relabel(BEST_WORST, store)
    assert (summary["new_labels"], summary["labels"]["not_selected"], summary["no_longer_selected"]) == (1, 3, 1)
    assert store.rows("select chosen, margin from preferences order by margin") == [
        (images["red"], 150.0),
        (redder, 200.0),
    ]
    assert store.rows("select count(*) from labels where choice = 'skip'") == [(0,)]
    assert relabel(BEST_WORST, store)["new_labels"] == 0
    assert check(store) == []


def test_a_best_worst_labeler_of_an_old_store_goes_on(store: PairStore):
    """Version 0.1 named the strategy "pairs", and took a label back by a skip."""
    _, images, pairs = red_pairs(store)
    (not_selected,) = (pair for pair, name in pairs.items() if name == "dim-mid")
    selected_again = add_pair(store, add_prompt(store, "two"), images["dim"], images["red"])
    config = {"rule": "single", "scorers": ["redness@1"], "tie_band": 0.0, "pairs": "best-worst"}
    store.append("labelers", [{"labeler": "redness", "kind": "ai", "config": json.dumps(config)}])
    for rep, choice in enumerate(("a", "skip")):
        rows = [{"pair_id": pair, "labeler": "redness", "choice": choice} for pair in (not_selected, selected_again)]
        store.append("labels", [row | {"revision": rep} for row in rows])
    store.ingest()
    summary = relabel(BEST_WORST, store)
    assert (summary["new_labels"], summary["labels"]["not_selected"], summary["no_longer_selected"]) == (2, 2, 0)
    assert labels(store)[not_selected] == "skip"
    assert labels(store)[selected_again] in "ab"
    assert relabel(BEST_WORST, store)["new_labels"] == 0
