"""A labeler's name means one thing, in old stores too, and exists only once it has labels."""

import json
from dataclasses import replace
from uuid import uuid4

import pytest
from content import fill
from prefloop.relabel import RelabelConfig
from prefloop.relabel.labelers import labeler_exists
from prefloop.relabel.labels import write_labels
from prefloop.relabel.scorers.registry import load_scorers
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore, PrefloopError, UsageError
from prefloop.store.check import check, logical_hashes
from test_relabel import REDNESS


@pytest.mark.parametrize(
    "other",
    [
        {"tie_band": 1.0},
        {"tie_quantile": 0.1},
        {"select": "best-worst"},
        {"rule": "majority"},
        {"rule": "weighted"},
        {"scorers": ("little_scorers:Darkness",)},
    ],
)
def test_a_labeler_keeps_its_meaning(store: PairStore, other: dict):
    fill(store)
    relabel(replace(REDNESS, labeler="mine"), store)
    before = logical_hashes(store)
    with pytest.raises(UsageError, match=r"'mine' exists and decides by .* give --labeler another name"):
        relabel(replace(REDNESS, labeler="mine", **other), store)
    assert logical_hashes(store) == before


def test_the_config_of_a_weighted_labeler_of_an_old_store_still_matches(store: PairStore):
    fill(store)
    both = ("little_scorers:Redness", "little_scorers:Darkness")
    config = {"rule": "weighted", "scorers": ["redness@1", "darkness@1"], "tie_band": 0.0, "tie_quantile": 0.2}
    kept = json.dumps({**config, "shares": {both[0]: 9.0}})  # as 0.1 wrote it
    store.append("labelers", [{"labeler": "weighted:redness+darkness", "kind": "ensemble", "config": kept}])
    store.ingest()
    same = RelabelConfig(scorers=both, rule="weighted", scorer_weights={both[0]: 9.0}, tie_quantile=0.2)
    assert relabel(same, store)["new_labels"] == 3
    with pytest.raises(UsageError, match=r"decides by .*\"shares\":.*, not by .*\"scorer_weights\":"):
        relabel(replace(same, scorer_weights={both[0]: 8.0}), store)
    assert store.rows("select count(*) from labelers") == [(1,)]


@pytest.mark.parametrize(
    "config",
    [
        RelabelConfig(scorers=("little_scorers:WrongShape",)),  # fails while it scores
        RelabelConfig(scorers=("odd_scorers:Nans",)),  # labels nothing
        replace(REDNESS, fit_temperature="human:nobody"),  # fails between scores and labels
        RelabelConfig(scorers=("odd_scorers:Judges",)),  # a pairwise judge that fails
    ],
)
def test_a_relabel_that_fails_before_its_first_label_leaves_no_labeler_behind(store: PairStore, config: RelabelConfig):
    fill(store)
    with pytest.raises(PrefloopError):
        relabel(config, store)
    store.ingest()
    assert store.rows("select labeler from labelers") == []


def test_labels_are_not_added_to_a_labeler_that_another_run_has_created_meanwhile(store: PairStore):
    fill(store)
    scorers = load_scorers(REDNESS.scorers, {})
    assert not labeler_exists(store, "mine", REDNESS, scorers)
    relabel(replace(REDNESS, tie_band=1000.0, labeler="mine"), store)  # ties alone
    with pytest.raises(UsageError, match="give --labeler another name"):
        write_labels(store, "mine", REDNESS, scorers, ("generate",), uuid4())


def test_an_eval_only_scorer_makes_no_labels(store: PairStore):
    fill(store)
    with pytest.raises(UsageError, match=r"judge is reserved for evaluation.*prefloop eval"):
        relabel(RelabelConfig(scorers=("little_scorers:EvalOnly",)), store)
    with pytest.raises(UsageError, match="oracle is reserved for evaluation"):
        relabel(RelabelConfig(scorers=("oracle",)), store)
    assert store.rows("select count(*) from labelers") == [(0,)]


def test_a_label_that_the_scores_contradict_is_superseded_and_stays_in_the_store(store: PairStore):
    (pair,) = fill(store, n_prompts=1)
    relabel(REDNESS, store)
    ((right,),) = store.rows("select choice from current_labels")
    wrong = "b" if right == "a" else "a"
    store.append("labels", [{"pair_id": pair, "labeler": "redness", "revision": 1, "choice": wrong}])
    store.ingest()
    assert relabel(REDNESS, store)["new_labels"] == 1
    assert store.rows("select choice from labels order by revision") == [(right,), (wrong,), (right,)]
    assert check(store) == []
