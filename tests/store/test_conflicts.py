"""Which of two rows with one key counts is decided by their content, not by a clock or their order."""

import datetime
import itertools
import shutil
from pathlib import Path
from uuid import UUID

import pytest
from content import add_generation, add_image, add_label, add_prompt, add_scores, fill
from prefloop.store import PairStore, runs
from prefloop.store.check import check, logical_hashes
from prefloop.store.maintenance.compact import compact
from prefloop.store.maintenance.merge import merge
from prefloop.store.runs import run

NOON = datetime.datetime(2026, 1, 1, 12)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Sets what time it is, for runs and parts."""

    def at(hour: int) -> None:
        moment = NOON.replace(hour=hour)
        monkeypatch.setattr(runs, "_now", lambda: moment)
        monkeypatch.setattr("time.time_ns", lambda: int(moment.timestamp() * 1e9))

    return at


@pytest.mark.slow(reason="writes and reads whole stores")
def test_writers_with_skewed_clocks_keep_the_same_image_of_a_generation(store: PairStore, tmp_path: Path, clock):
    prompt, model = add_prompt(store, "one"), UUID(int=1)
    images = [add_image(store, (value, 0, 0)) for value in (10, 20, 30)]
    stores = []
    for number, order in enumerate(itertools.permutations(range(3))):
        ours = PairStore(shutil.copytree(store.path, tmp_path / str(number)))
        for hour, which in zip((20, 4, 12), order, strict=True):  # the first of them in time is the last by its clock
            clock(hour)
            row = {"generation_id": UUID(int=7), "prompt_id": prompt, "model_id": model, "image_id": images[which]}
            ours.append("generations", [row | {"sampling": "{}", "seed": 0, "image_index": 0}])
            ours.ingest()
        stores.append(ours)
    images_by_store = [ours.rows("select image_id from generations") for ours in stores]
    assert images_by_store == [[(min(images),)]] * 6
    hashes = [logical_hashes(ours) for ours in stores]
    for ours, before in zip(stores, hashes, strict=True):
        ours.rebuild()
        assert logical_hashes(ours) == before
        compact(ours)
        assert logical_hashes(ours) == before
        ours.rebuild()
        assert logical_hashes(ours) == before
    assert [problem.where for problem in check(stores[0])] == ["generations.model_id → models"]


@pytest.mark.slow(reason="writes and reads whole stores")
def test_every_table_keeps_the_same_row_in_whatever_order_parts_are_ingested(store: PairStore, tmp_path: Path):
    (pair,) = fill(store, n_prompts=1)
    ((prompt, image),) = store.rows("select prompt_id, image_a from pairs")
    other = PairStore(shutil.copytree(store.path, tmp_path / "other"))
    for ours, first in ((store, 0), (other, 1)):
        for number in (first, 1 - first):
            add_prompt(ours, "prompt 0", turn=str(number))
            add_label(ours, pair, "me", "ab"[number], p_a=None if number else 0.5)
            add_scores(ours, "red@1", {(prompt, image): 1.0 + number})
            ours.append("labelers", [{"labeler": "me", "kind": ("human", "imported")[number], "config": "{}"}])
            ours.append("models", [{"model_id": UUID(int=1), "name": str(number), "config": "{}"}])
            add_generation(ours, prompt, UUID(int=1), image, index=number)
            ours.ingest()
    assert logical_hashes(store) == logical_hashes(other)
    assert check(store) == check(other) == []
    # the smaller one, column by column; nothing is larger than something
    assert store.rows("select choice, p_a, score from labels, scores") == [("a", 0.5, 1.0)]


def test_a_run_that_was_merged_before_its_end_ends_even_if_the_clock_stands_still(
    store: PairStore, tmp_path: Path, clock
):
    other = PairStore.create(tmp_path / "other")
    clock(12)
    with run(other, "test", {}):
        merge(store, PairStore.open(other.path))
        assert store.rows("select status from runs") == [("running",)]
    merge(store, other)
    assert store.rows("select status from runs") == [("done",)]


def test_a_run_ends_even_if_the_clock_is_set_back(store: PairStore, clock):
    clock(12)
    with run(store, "test", {}):
        store.ingest()
        clock(9)
    assert store.rows("select status from runs") == [("done",)]
    store.rebuild()
    assert store.rows("select status from runs") == [("done",)]
    compact(store)
    store.rebuild()
    assert store.rows("select status from runs") == [("done",)]
