"""Settings of relabel are checked before anything is loaded."""

from dataclasses import replace

import pytest
from content import fill
from prefloop.relabel import RelabelConfig
from prefloop.relabel.config import parse_checkpoints, parse_scorer_weights
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore, UsageError
from test_relabel import REDNESS


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (
            "nope",
            "unknown scorer 'nope'; choose from aesthetics, clip, hps, hpsv2, hpsv2.1, hpsv3, imagereward, oracle, pickscore, vlm",
        ),
        ("little_scorers:Gone", "the scorer 'little_scorers:Gone' cannot be imported: AttributeError"),
        ("no.such.module:X", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (
            "little_scorers:NoScorer",
            "is not a scorer but a class without a method score; name a class with name, revision",
        ),
    ],
)
def test_a_wrong_scorer_is_refused_by_name(store: PairStore, scorer: str, message: str):
    fill(store)
    with pytest.raises(UsageError, match=message):
        relabel(RelabelConfig(scorers=(scorer,)), store)


def test_a_checkpoint_for_a_scorer_that_takes_none_is_refused(store: PairStore):
    fill(store)
    with pytest.raises(UsageError, match="takes no checkpoint"):
        relabel(replace(REDNESS, checkpoints={"little_scorers:Redness": "somewhere"}), store)
    with pytest.raises(UsageError, match="is not one of the scorers"):
        relabel(replace(REDNESS, checkpoints={"hps": "somewhere"}), store)


def test_a_checkpoint_for_all_scorers_is_for_those_that_take_one(store: PairStore):
    fill(store)
    summary = relabel(replace(REDNESS, checkpoints={"": "shapes"}), store)
    assert summary["new_labels"] == summary["pairs"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorers": ()}, "name at least one --scorer"),
        ({"scorers": ("x", "x")}, "named twice"),
        ({"scorers": ("x", "y")}, "single takes one scorer"),
        ({"rule": "best"}, "unknown rule 'best'; choose from single, mean-rank, weighted, majority, unanimous, pareto"),
        ({"tie_band": -0.1}, "tie-band"),
        ({"tie_band": float("nan")}, "tie-band"),
        ({"tie_quantile": 1.0}, "tie-quantile"),
        ({"tie_quantile": float("nan")}, "tie-quantile"),
        ({"tie_quantile": 0.1, "tie_band": 0.1}, "not both"),
        ({"scorer_weights": {"pickscore": 1.0}}, "give --rule weighted"),
        ({"rule": "weighted", "scorer_weights": {"hps": 1.0}}, "--scorer-weight names 'hps'"),
        ({"rule": "weighted", "scorer_weights": {"pickscore": 0.0}}, "weight of pickscore must be finite and above 0"),
        ({"select": "some"}, "unknown select 'some'; choose from all, best-worst"),
        ({"batch_size": 0}, "batch-size"),
        ({"temperature": 0.0}, "temperature must be finite and above 0"),
        ({"temperature": float("inf")}, "temperature must be finite and above 0"),
        ({"temperature": 1.0, "fit_temperature": "human:me"}, "not both"),
        ({"temperature": 1.0, "scorers": ("x", "y"), "rule": "majority"}, "in the unit of one scorer"),
        ({"max_unreadable": 1.1}, "max-unreadable"),
        ({"max_unreadable": float("nan")}, "max-unreadable"),
        ({"labeler": " "}, "labeler must be a name"),
        ({"labeler": "human:me"}, "human: is for people"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings: dict, message: str):
    with pytest.raises(UsageError, match=message):
        RelabelConfig(**settings)


def test_scorer_weights_are_numbers_by_scorer():
    assert parse_scorer_weights(["hps=0.5", "module:Class=2"]) == {"hps": 0.5, "module:Class": 2.0}
    for wrong in (["0.5"], ["hps="], ["hps=half"], ["hps=nan"], ["hps=1", "hps=2"]):
        with pytest.raises(UsageError, match="SCORER=NUMBER"):
            parse_scorer_weights(wrong)


def test_a_checkpoint_is_for_all_scorers_or_for_one():
    assert parse_checkpoints(["shapes", "clip=a/b=c"]) == {"": "shapes", "clip": "a/b=c"}
    for wrong in (["x", "y"], ["clip="], [""]):
        with pytest.raises(UsageError, match="each scorer once"):
            parse_checkpoints(wrong)


def test_an_unknown_device_is_refused(store: PairStore):
    fill(store, 1)
    config = RelabelConfig(scorers=("clip",), checkpoints={"clip": "shapes"}, device="gpu0")
    with pytest.raises(UsageError, match="the device 'gpu0' is not available"):
        relabel(config, store)
    assert store.rows("select count(*) from scores") == [(0,)]
