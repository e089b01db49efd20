"""Images are scored once, labels follow from the scores by a rule, and unusable images get neither."""

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest
from content import add_label, add_labeler, add_pair, add_picture, add_prompt, add_scores, fill, picture
from little_scorers import Redness
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.config import parse_checkpoints, parse_scorer_weights
from prefloop.relabel.labelers import labeler_exists
from prefloop.relabel.labels import write_labels
from prefloop.relabel.scorers.registry import load_scorers
from prefloop.relabel.stage import relabel
from prefloop.relabel.temperature import fit_temperature
from prefloop.store import BadDataError, PairStore, PrefloopError, UsageError
from prefloop.store.check import check, logical_hashes
from typer.testing import CliRunner

REDNESS = RelabelConfig(scorers=("little_scorers:Redness",))
BEST_WORST = replace(REDNESS, select="best-worst")


@pytest.fixture(autouse=True)
def _count_from_zero():
    Redness.seen = 0


def labels(store: PairStore, labeler: str = "redness") -> dict[UUID, str]:
    return dict(store.rows("select pair_id, choice from current_labels where labeler = ?", [labeler]))


def test_relabel_prefers_the_higher_score_with_its_margin_and_probability(store: PairStore):
    prompt = add_prompt(store, "something red")
    dim, red = add_picture(store, (50, 0, 0)), add_picture(store, (150, 0, 0))
    pair = add_pair(store, prompt, dim, red)
    store.ingest()
    summary = relabel(REDNESS, store)
    assert summary.pop("seconds")["redness"] > 0
    assert summary == {
        "labeler": "redness",
        "pairs": 1,
        "scored": {"redness": 2},
        "labels": {"a": int(red < dim), "b": int(dim < red), "tie": 0, "undecided": 0, "not_selected": 0},
        "new_labels": 1,
        "no_longer_selected": 0,
        "excluded": {},
        "truncated_prompts": {},
        "temperatures": {"redness": 50.0},
    }
    assert dict(store.rows("select image_id, score from scores where scorer = 'redness@1'")) == {dim: 50, red: 150}
    ((labelled, chosen, p_chosen, margin),) = store.rows("select pair_id, chosen, p_chosen, margin from preferences")
    # 150 - 50 = 100 at a temperature of 50: 1 / (1 + exp(-2)) = 0.880797
    assert (labelled, chosen, margin) == (pair, red, 100.0)
    assert p_chosen == pytest.approx(0.880797)


def test_relabel_scores_each_image_once(store: PairStore):
    fill(store, n_prompts=3, images_per_prompt=4)  # 12 images in 9 pairs
    assert relabel(replace(REDNESS, batch_size=5), store)["scored"] == {"redness": 12}
    assert Redness.seen == 12
    again = relabel(REDNESS, store)
    assert (again["scored"], again["new_labels"], Redness.seen) == ({"redness": 0}, 0, 12)
    assert sum(again["labels"].values()) == 9


def test_only_new_images_are_scored(store: PairStore):
    (first, _) = fill(store, n_prompts=2)
    relabel(REDNESS, store)
    before = labels(store)
    prompt = add_prompt(store, "another")
    add_pair(store, prompt, add_picture(store, (77, 0, 0)), add_picture(store, (78, 0, 0)))
    store.ingest()
    assert relabel(REDNESS, store)["scored"] == {"redness": 2}
    assert len(labels(store)) == 3
    assert labels(store)[first] == before[first]


def test_batches_do_not_change_scores(tmp_path: Path):
    scores = []
    for size in (1, 3, 64):
        store = PairStore.create(tmp_path / str(size))
        fill(store, 3, 3)
        relabel(replace(REDNESS, batch_size=size), store)
        scores.append(store.rows("select image_id, prompt_id, score from scores order by all"))
    assert scores[0] == scores[1] == scores[2]
    assert len(scores[0]) == 9


def test_another_rule_scores_nothing_and_is_another_labeler(store: PairStore):
    fill(store)
    both = ("little_scorers:Redness", "little_scorers:Darkness")
    relabel(RelabelConfig(scorers=both, rule="majority"), store)
    assert Redness.seen == 6
    for rule in ("unanimous", "mean-rank"):
        summary = relabel(RelabelConfig(scorers=both, rule=rule), store)
        assert summary["scored"] == {"redness": 0, "darkness": 0}
        assert summary["new_labels"] == 3
    assert Redness.seen == 6
    names = dict(store.rows("select labeler, kind from labelers"))
    assert names == {f"{rule}:redness+darkness": "ensemble" for rule in ("majority", "unanimous", "mean-rank")}
    # the redder image is the lighter one: the two scorers never agree
    assert set(labels(store, "majority:redness+darkness").values()) == {"tie"}


def test_mean_rank_ranks_among_the_images_of_the_prompt(store: PairStore):
    prompt = add_prompt(store, "one")
    # redness 200, 150, 100: ranks 1, 2, 3; darkness 255 - 200/3, 255 - 250/3, 255 - 100/3: ranks 2, 3, 1
    x, y, z = (add_picture(store, colour) for colour in ((200, 0, 0), (200, 50, 0), (100, 0, 0)))
    pairs = {add_pair(store, prompt, *both): both for both in ((x, y), (x, z), (y, z))}
    store.ingest()
    relabel(RelabelConfig(scorers=("little_scorers:Redness", "little_scorers:Darkness"), rule="mean-rank"), store)
    rows = store.rows("select pair_id, chosen, margin from preferences")
    # mean ranks: x 1.5, y 2.5, z 2: x over y by 1, x over z by 0.5, z over y by 0.5
    expected = {(x, y): (x, 1.0), (x, z): (x, 0.5), (y, z): (z, 0.5)}
    assert {pairs[pair]: (chosen, margin) for pair, chosen, margin in rows} == expected


def test_equal_scores_share_their_rank(store: PairStore):
    prompt = add_prompt(store, "one")
    # redness 90, 90, 10: ranks 1.5, 1.5, 3
    x, y, z = (add_picture(store, colour) for colour in ((90, 0, 0), (90, 0, 9), (10, 0, 0)))
    pairs = [add_pair(store, prompt, *both) for both in ((x, y), (x, z))]
    store.ingest()
    relabel(RelabelConfig(scorers=("little_scorers:Redness",), rule="mean-rank"), store)
    rows = dict(store.rows("select pair_id, margin from current_labels"))
    assert [rows[pair] for pair in pairs] == [0.0, 1.5]


def test_images_generated_for_evaluation_do_not_change_mean_ranks(store: PairStore):
    prompt = add_prompt(store, "one")
    red, dim = add_picture(store, (200, 0, 0)), add_picture(store, (100, 0, 0))
    add_pair(store, prompt, red, dim)
    between, other = add_picture(store, (150, 0, 0)), add_picture(store, (151, 0, 0))
    add_pair(store, prompt, between, other, source="eval")
    store.ingest()
    config = RelabelConfig(scorers=("little_scorers:Redness",), rule="mean-rank")
    relabel(config, store)
    # as eval scores its own images
    add_scores(store, "redness@1", {(prompt, between): 150.0, (prompt, other): 151.0})
    store.ingest()
    assert relabel(config, store)["new_labels"] == 0
    assert store.rows("select margin from current_labels") == [(1.0,)]


def test_evaluation_pairs_are_neither_scored_nor_labelled(store: PairStore):
    fill(store, n_prompts=1)
    prompt = add_prompt(store, "held out")
    add_pair(store, prompt, add_picture(store, (1, 2, 3)), add_picture(store, (3, 2, 1)), source="eval")
    store.ingest()
    assert relabel(REDNESS, store)["scored"] == {"redness": 2}
    assert len(labels(store)) == 1


def test_differences_within_the_tie_band_are_ties(store: PairStore):
    prompt = add_prompt(store, "one")
    x, y, z = (add_picture(store, (red, 0, 0)) for red in (100, 110, 121))
    near, far = add_pair(store, prompt, x, y), add_pair(store, prompt, y, z)
    store.ingest()
    summary = relabel(replace(REDNESS, tie_band=10.0), store)
    # differences 10, which is in the band, and 11
    assert labels(store)[near] == "tie"
    assert labels(store)[far] in "ab"
    assert summary["labels"]["tie"] == 1


def test_equal_scores_are_a_tie(store: PairStore):
    fill(store)
    relabel(RelabelConfig(scorers=("little_scorers:Constant",)), store)
    assert store.rows("select distinct choice, p_a, margin from labels") == [("tie", 0.5, 0.0)]


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


def test_an_eval_only_scorer_makes_no_labels(store: PairStore):
    fill(store)
    with pytest.raises(UsageError, match=r"judge is reserved for evaluation.*prefloop eval"):
        relabel(RelabelConfig(scorers=("little_scorers:EvalOnly",)), store)
    with pytest.raises(UsageError, match="oracle is reserved for evaluation"):
        relabel(RelabelConfig(scorers=("oracle",)), store)
    assert store.rows("select count(*) from labelers") == [(0,)]


def test_a_score_that_is_not_finite_decides_nothing_and_is_counted(store: PairStore):
    prompt = add_prompt(store, "one")
    black, red, dim = (add_picture(store, (red, 0, 0)) for red in (0, 200, 100))
    blind, seen = add_pair(store, prompt, black, red), add_pair(store, prompt, red, dim)
    store.ingest()
    blindness = RelabelConfig(scorers=("little_scorers:Blindness",), max_unreadable=0.4)
    summary = relabel(blindness, store)
    assert summary["excluded"] == {"not finite": 1}
    assert summary["labels"]["undecided"] == 1
    assert labels(store, "blindness").keys() == {seen}
    assert blind not in labels(store, "blindness")
    # the score is kept, so that the image is not scored again
    assert relabel(blindness, store)["scored"] == {"blindness": 0}


def test_too_many_scores_that_are_not_finite_end_the_run_after_the_others_are_kept(store: PairStore):
    prompt = add_prompt(store, "one")
    black, red, dim = (add_picture(store, (red, 0, 0)) for red in (0, 200, 100))
    add_pair(store, prompt, black, red)
    seen = add_pair(store, prompt, red, dim)
    # an evaluation's scores do not count
    add_pair(store, prompt, add_picture(store, (1, 0, 0)), add_picture(store, (2, 0, 0)), source="eval")
    store.ingest()
    config = RelabelConfig(scorers=("little_scorers:Blindness",), max_unreadable=0.3)
    message = r"1 of 3 scores of blindness@1 are not finite, more than --max-unreadable 0.3: .*another revision"
    for _ in range(2):  # the second run scores nothing and fails in the same way
        with pytest.raises(BadDataError, match=message) as caught:
            relabel(config, store)
        assert caught.value.exit_code == 3
        assert labels(store, "blindness").keys() == {seen}
    assert store.rows("select status from runs") == [("failed",)] * 2
    assert relabel(replace(config, max_unreadable=0.34), store)["new_labels"] == 0


def test_a_scorer_that_is_nan_everywhere_ends_with_3(store: PairStore):
    fill(store, 2)
    words = ["relabel", "--scorer", "odd_scorers:Nans", "--store", str(store.path)]
    for _ in range(2):
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 3, ended.output
        assert "4 of 4 scores of nans@1 are not finite, more than --max-unreadable 0.01" in ended.stderr
    both = RelabelConfig(scorers=("odd_scorers:Nans", "little_scorers:Redness"), rule="majority")
    with pytest.raises(BadDataError, match="4 of 4 scores of nans@1 are not finite"):
        relabel(both, store)
    assert store.rows("select count(*) from labels") == [(0,)]
    assert store.rows("select count(*) from scores where scorer = 'redness@1'") == [(4,)]


def test_only_a_pair_whose_images_all_scorers_have_scored_is_decided(store: PairStore):
    names = ("little_scorers:Redness", "little_scorers:Darkness")
    prompt = add_prompt(store, "one")
    images = [add_picture(store, (red, 0, 0)) for red in (10, 20, 30, 40, 50, 60)]
    by_one, by_other, by_both = (add_pair(store, prompt, images[at], images[at + 1]) for at in (0, 2, 4))
    add_scores(store, "redness@1", {(prompt, images[at]): float(at) for at in (0, 1, 2, 4, 5)})
    add_scores(store, "darkness@1", {(prompt, images[at]): float(at) for at in (1, 2, 3, 4, 5)})
    store.ingest()
    for rule in ("majority", "unanimous", "weighted", "mean-rank"):
        how = RelabelConfig(scorers=names, rule=rule)
        written = write_labels(store, rule, how, load_scorers(names, {}), ("generate",), uuid4())
        assert written.choices["undecided"] == 2
        assert labels(store, rule).keys() == {by_both}, (by_one, by_other)


def corrupt(store: PairStore, image: UUID) -> None:
    path = store.image_path(image)
    path.write_bytes(path.read_bytes()[:-9] + b"corrupted")


def test_an_unreadable_image_is_excluded_and_counted_by_reason(store: PairStore):
    prompt = add_prompt(store, "one")
    corrupted, missing, dim, red = (add_picture(store, (value, 0, 0)) for value in (1, 2, 100, 200))
    pairs = [add_pair(store, prompt, corrupted, dim), add_pair(store, prompt, missing, dim)]
    readable = add_pair(store, prompt, dim, red)
    store.ingest()
    corrupt(store, corrupted)
    store.image_path(missing).unlink()
    summary = relabel(replace(REDNESS, max_unreadable=0.5), store)
    assert summary["excluded"] == {"image hash": 1, "image missing": 1}
    assert summary["scored"] == {"redness": 2}
    assert labels(store).keys() == {readable}
    # once repaired, they are scored and labelled by the same command
    store.image_path(corrupted).write_bytes(picture((1, 0, 0)))
    store.image_path(missing).write_bytes(picture((2, 0, 0)))
    assert relabel(REDNESS, store)["scored"] == {"redness": 2}
    assert labels(store).keys() == {readable, *pairs}


def test_too_many_unreadable_images_end_the_run_after_the_others_are_labelled(store: PairStore):
    pairs = fill(store, n_prompts=5)  # 10 images
    ((image,),) = store.rows("select image_a from pairs where pair_id = ?", [pairs[0]])
    corrupt(store, image)
    with pytest.raises(BadDataError, match=r"1 of 10 images cannot be used \(1 image hash\).*store check") as caught:
        relabel(replace(REDNESS, max_unreadable=0.09), store)
    assert caught.value.exit_code == 3
    assert labels(store).keys() == set(pairs[1:])
    assert store.rows("select status from runs") == [("failed",)]
    assert relabel(replace(REDNESS, max_unreadable=0.1), store)["new_labels"] == 0


def test_an_unreadable_image_counts_once_for_several_scorers(store: PairStore):
    pairs = fill(store, n_prompts=5)
    ((image,),) = store.rows("select image_a from pairs where pair_id = ?", [pairs[0]])
    corrupt(store, image)
    both = ("little_scorers:Redness", "little_scorers:Darkness")
    summary = relabel(RelabelConfig(scorers=both, rule="majority", max_unreadable=0.1), store)
    assert summary["excluded"]["image hash"] == 1


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


def test_a_store_without_pairs_names_the_command_that_adds_some(store: PairStore):
    with pytest.raises(UsageError, match=r"there are no pairs in .*prefloop generate"):
        relabel(REDNESS, store)


def test_a_scorer_of_wrong_shape_is_named(store: PairStore):
    fill(store)
    with pytest.raises(PrefloopError, match=r"wrong-shape gave scores of shape \(1,\) for 6 images"):
        relabel(RelabelConfig(scorers=("little_scorers:WrongShape",)), store)
    assert store.rows("select count(*) from scores") == [(0,)]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (
            "nope",
            "unknown scorer 'nope'; choose from aesthetics, clip, hps, hpsv2, hpsv2.1, imagereward, oracle, pickscore, vlm",
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


def test_the_run_keeps_its_config_and_its_summary(store: PairStore):
    fill(store)
    summary = relabel(REDNESS, store)
    ((config, kept),) = store.rows("select config, summary from runs where kind = 'relabel'")
    assert json.loads(config)["scorers"] == ["little_scorers:Redness"]
    assert json.loads(kept) == summary


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorers": ()}, "name at least one --scorer"),
        ({"scorers": ("x", "x")}, "named twice"),
        ({"scorers": ("x", "y")}, "single takes one scorer"),
        ({"rule": "best"}, "unknown rule 'best'; choose from single, mean-rank, weighted, majority, unanimous"),
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


def red_pairs(store: PairStore) -> tuple[UUID, dict[str, UUID], dict[UUID, str]]:
    """A prompt, three images by name, and their three pairs with the names of their images."""
    prompt = add_prompt(store, "one")
    images = {name: add_picture(store, (value, 0, 0)) for name, value in (("dim", 50), ("mid", 100), ("red", 200))}
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


def test_a_pair_that_is_no_longer_best_and_worst_keeps_its_label_and_is_counted(store: PairStore):
    prompt, images, _ = red_pairs(store)
    relabel(BEST_WORST, store)
    redder = add_picture(store, (250, 0, 0))
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
        store.append("labels", [row | {"rep": rep} for row in rows])
    store.ingest()
    summary = relabel(BEST_WORST, store)
    assert (summary["new_labels"], summary["labels"]["not_selected"], summary["no_longer_selected"]) == (2, 2, 0)
    assert labels(store)[not_selected] == "skip"
    assert labels(store)[selected_again] in "ab"
    assert relabel(BEST_WORST, store)["new_labels"] == 0


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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", ["single", "weighted"])
def test_the_smallest_temperature_gives_certain_labels_without_a_warning(store: PairStore, rule: str):
    fill(store)
    relabel(replace(REDNESS, rule=rule, temperature=1e-320), store)
    ((p_chosen, margin),) = store.rows("select distinct p_chosen, margin > 0 and isfinite(margin) from preferences")
    assert (p_chosen, margin) == (1.0, True)


def test_a_weighted_ensemble_follows_its_weights(store: PairStore):
    prompt = add_prompt(store, "one")
    # redness 200 and 0 at a temperature of 50: 4 logits; darkness 255 - 200/3 and 255: -66.7 logits
    red, black = add_picture(store, (200, 0, 0)), add_picture(store, (0, 0, 0))
    add_pair(store, prompt, red, black)
    store.ingest()
    both = ("little_scorers:Redness", "little_scorers:Darkness")
    relabel(RelabelConfig(scorers=both, rule="weighted", scorer_weights={both[0]: 99.0}), store)
    # (99 · 4 - 66.67) / 100 = 3.2933
    ((chosen, margin),) = store.rows("select chosen, margin from preferences")
    assert (chosen, margin) == (red, pytest.approx(3.293333))
    relabel(RelabelConfig(scorers=both, rule="weighted", labeler="alike"), store)
    assert store.rows("select chosen from preferences where labeler = 'alike'") == [(black,)]


def test_a_temperature_is_fitted_on_human_choices(store: PairStore):
    """In 7 of 10 pairs, whose scores differ by 100, the redder image was chosen."""
    pairs = []
    for number in range(10):
        prompt = add_prompt(store, f"prompt {number}")
        dim, red = add_picture(store, (50, 0, number)), add_picture(store, (150, 0, number))
        pairs.append((add_pair(store, prompt, dim, red), red < dim))
    add_labeler(store, "human:me")
    for number, (pair, red_is_a) in enumerate(pairs):
        add_label(store, pair, "human:me", "a" if red_is_a == (number < 7) else "b")
    store.ingest()
    relabel(REDNESS, store)
    summary = relabel(replace(REDNESS, fit_temperature="human:me", labeler="sure"), store)
    # of 12, (7·11 + 3·1) / 12 = 6.667 of 10 by Platt's targets: logit ln 2 at a difference of 100
    assert summary["temperatures"]["redness"] == pytest.approx(100 / math.log(2), rel=1e-6)
    rows = store.rows("select distinct round(p_chosen, 5) from preferences where labeler = 'sure'")
    assert rows == [(pytest.approx(2 / 3, abs=1e-5),)]
    assert summary["scored"] == {"redness": 0}


def test_a_scorer_without_embeddings_counts_the_prompts_it_truncates(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Redness, "n_truncated", lambda _, prompts: prompts.count("prompt 1"), raising=False)
    fill(store, 3)
    assert relabel(REDNESS, store)["truncated_prompts"] == {"redness": 1}


def test_temperature_sets_the_soft_label(store: PairStore):
    prompt = add_prompt(store, "one")
    add_pair(store, prompt, add_picture(store, (50, 0, 0)), add_picture(store, (150, 0, 0)))
    store.ingest()
    assert relabel(replace(REDNESS, temperature=200.0), store)["temperatures"] == {"redness": 200.0}
    # 100 apart: 1 / (1 + e^-0.5)
    assert store.rows("select p_chosen from preferences") == [(pytest.approx(0.622459, abs=1e-5),)]
    with pytest.raises(UsageError, match="--labeler another name"):
        relabel(REDNESS, store)


@pytest.mark.parametrize(
    ("labeler", "message"),
    [("human:you", "no labels by 'human:you'; there are labels by human:me"), ("human:me", "has decided 2 pairs")],
)
def test_a_temperature_needs_labels(store: PairStore, labeler: str, message: str):
    add_labeler(store, "human:me")
    for pair in fill(store, 2):
        add_label(store, pair, "human:me", "a")
    store.ingest()
    with pytest.raises(UsageError, match=message):
        relabel(replace(REDNESS, fit_temperature=labeler), store)


def test_choices_against_the_scores_have_no_temperature():
    with pytest.raises(ValueError, match="do not agree with the scores"):
        fit_temperature(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    # perfectly predicted: finite, and lower with more choices
    few, many = (fit_temperature(np.ones(n), np.ones(n)) for n in (4, 40))
    assert 0 < many < few < 1
    assert few == pytest.approx(1 / math.log(5))  # the target is 5 of 6


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
