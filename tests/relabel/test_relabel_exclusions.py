"""Images and scores that cannot be used decide nothing, are counted, and end the run if they are too many."""

from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from content import add_image, add_pair, add_prompt, add_scores, fill, image_bytes
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.labels import write_labels
from prefloop.relabel.scorers.registry import load_scorers
from prefloop.relabel.stage import relabel
from prefloop.store import BadDataError, PairStore, PrefloopError
from test_relabel import REDNESS, labels
from typer.testing import CliRunner


def test_a_score_that_is_not_finite_decides_nothing_and_is_counted(store: PairStore):
    prompt = add_prompt(store, "one")
    black, red, dim = (add_image(store, (red, 0, 0)) for red in (0, 200, 100))
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
    black, red, dim = (add_image(store, (red, 0, 0)) for red in (0, 200, 100))
    add_pair(store, prompt, black, red)
    seen = add_pair(store, prompt, red, dim)
    # an evaluation's scores do not count
    add_pair(store, prompt, add_image(store, (1, 0, 0)), add_image(store, (2, 0, 0)), source="eval")
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
    images = [add_image(store, (red, 0, 0)) for red in (10, 20, 30, 40, 50, 60)]
    by_one, by_other, by_both = (add_pair(store, prompt, images[at], images[at + 1]) for at in (0, 2, 4))
    add_scores(store, "redness@1", {(prompt, images[at]): float(at) for at in (0, 1, 2, 4, 5)})
    add_scores(store, "darkness@1", {(prompt, images[at]): float(at) for at in (1, 2, 3, 4, 5)})
    store.ingest()
    for rule in ("majority", "unanimous", "pareto", "weighted", "mean-rank"):
        how = RelabelConfig(scorers=names, rule=rule)
        written = write_labels(store, rule, how, load_scorers(names, {}), ("generate",), uuid4())
        assert written.choices["undecided"] == 2
        assert labels(store, rule).keys() == {by_both}, (by_one, by_other)


def corrupt(store: PairStore, image: UUID) -> None:
    path = store.image_path(image)
    path.write_bytes(path.read_bytes()[:-9] + b"corrupted")


def test_an_unreadable_image_is_excluded_and_counted_by_reason(store: PairStore):
    prompt = add_prompt(store, "one")
    corrupted, missing, dim, red = (add_image(store, (value, 0, 0)) for value in (1, 2, 100, 200))
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
    store.image_path(corrupted).write_bytes(image_bytes((1, 0, 0)))
    store.image_path(missing).write_bytes(image_bytes((2, 0, 0)))
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


def test_a_scorer_of_wrong_shape_is_named(store: PairStore):
    fill(store)
    with pytest.raises(PrefloopError, match=r"wrong-shape gave scores of shape \(1,\) for 6 images"):
        relabel(RelabelConfig(scorers=("little_scorers:WrongShape",)), store)
    assert store.rows("select count(*) from scores") == [(0,)]
