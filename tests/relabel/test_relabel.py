"""Images are scored once, labels follow from the scores by a rule, and unusable images get neither."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
from content import add_image, add_pair, add_prompt, add_scores, fill
from little_scorers import Redness
from PIL.Image import Image
from prefloop.core.errors import Interrupted
from prefloop.core.signals import StopSignal
from prefloop.relabel import RelabelConfig
from prefloop.relabel.scorers.registry import identity
from prefloop.relabel.scores import score_images, unscored
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore, UsageError

REDNESS = RelabelConfig(scorers=("little_scorers:Redness",))


@pytest.fixture(autouse=True)
def _count_from_zero():
    Redness.seen = 0


def labels(store: PairStore, labeler: str = "redness") -> dict[UUID, str]:
    return dict(store.rows("select pair_id, choice from current_labels where labeler = ?", [labeler]))


def test_relabel_prefers_the_higher_score_with_its_margin_and_probability(store: PairStore):
    prompt = add_prompt(store, "something red")
    dim, red = add_image(store, (50, 0, 0)), add_image(store, (150, 0, 0))
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
    add_pair(store, prompt, add_image(store, (77, 0, 0)), add_image(store, (78, 0, 0)))
    store.ingest()
    assert relabel(REDNESS, store)["scored"] == {"redness": 2}
    assert len(labels(store)) == 3
    assert labels(store)[first] == before[first]


@pytest.mark.slow(reason="scores in several runs")
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
    x, y, z = (add_image(store, colour) for colour in ((200, 0, 0), (200, 50, 0), (100, 0, 0)))
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
    x, y, z = (add_image(store, colour) for colour in ((90, 0, 0), (90, 0, 9), (10, 0, 0)))
    pairs = [add_pair(store, prompt, *both) for both in ((x, y), (x, z))]
    store.ingest()
    relabel(RelabelConfig(scorers=("little_scorers:Redness",), rule="mean-rank"), store)
    rows = dict(store.rows("select pair_id, margin from current_labels"))
    assert [rows[pair] for pair in pairs] == [0.0, 1.5]


def test_images_generated_for_evaluation_do_not_change_mean_ranks(store: PairStore):
    prompt = add_prompt(store, "one")
    red, dim = add_image(store, (200, 0, 0)), add_image(store, (100, 0, 0))
    add_pair(store, prompt, red, dim)
    between, other = add_image(store, (150, 0, 0)), add_image(store, (151, 0, 0))
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
    add_pair(store, prompt, add_image(store, (1, 2, 3)), add_image(store, (3, 2, 1)), source="eval")
    store.ingest()
    assert relabel(REDNESS, store)["scored"] == {"redness": 2}
    assert len(labels(store)) == 1


def test_differences_within_the_tie_band_are_ties(store: PairStore):
    prompt = add_prompt(store, "one")
    x, y, z = (add_image(store, (red, 0, 0)) for red in (100, 110, 121))
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


def test_a_store_without_pairs_names_the_command_that_adds_some(store: PairStore):
    with pytest.raises(UsageError, match=r"there are no pairs in .*prefloop generate"):
        relabel(REDNESS, store)


def test_the_run_keeps_its_config_and_its_summary(store: PairStore):
    fill(store)
    summary = relabel(REDNESS, store)
    ((config, kept),) = store.rows("select config, summary from runs where kind = 'relabel'")
    assert json.loads(config)["scorers"] == ["little_scorers:Redness"]
    assert json.loads(kept) == summary


def test_a_weighted_ensemble_follows_its_weights(store: PairStore):
    prompt = add_prompt(store, "one")
    # redness 200 and 0 at a temperature of 50: 4 logits; darkness 255 - 200/3 and 255: -66.7 logits
    red, black = add_image(store, (200, 0, 0)), add_image(store, (0, 0, 0))
    add_pair(store, prompt, red, black)
    store.ingest()
    both = ("little_scorers:Redness", "little_scorers:Darkness")
    relabel(RelabelConfig(scorers=both, rule="weighted", scorer_weights={both[0]: 99.0}), store)
    # (99 · 4 - 66.67) / 100 = 3.2933
    ((chosen, margin),) = store.rows("select chosen, margin from preferences")
    assert (chosen, margin) == (red, pytest.approx(3.293333))
    relabel(RelabelConfig(scorers=both, rule="weighted", labeler="alike"), store)
    assert store.rows("select chosen from preferences where labeler = 'alike'") == [(black,)]


def test_a_scorer_without_embeddings_counts_the_prompts_it_truncates(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Redness, "n_truncated", lambda _, prompts: prompts.count("prompt 1"), raising=False)
    fill(store, 3)
    assert relabel(REDNESS, store)["truncated_prompts"] == {"redness": 1}


def test_scores_of_many_small_batches_are_one_part(store: PairStore):
    fill(store, n_prompts=6, images_per_prompt=3)
    before = set(store.journal.iterdir())
    relabel(replace(REDNESS, batch_size=2), store)  # 18 images in 9 batches
    (part,) = [path for path in set(store.journal.iterdir()) - before if "-scores-" in path.name]
    assert pq.read_metadata(part).num_rows == 18


def test_a_signal_stops_after_a_batch_whose_scores_are_kept(store: PairStore):
    fill(store, n_prompts=4, images_per_prompt=2)
    stop = StopSignal()

    class Stopping(Redness):
        def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:
            stop.number = 15 if self.seen >= 3 else 0
            return super().score(prompts, images)

    scorer = Stopping()
    items = unscored(store, identity(scorer), ("generate",))
    with pytest.raises(Interrupted, match="6 scores of redness are in"):
        score_images(store, scorer, items, batch_size=3, run_id=UUID(int=0), stop=stop)
    store.ingest()
    assert store.rows("select count(*) from scores") == [(6,)]
    assert Stopping.seen == 6
