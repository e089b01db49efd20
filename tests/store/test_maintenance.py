"""Merging, backing up, removing and compacting change where rows are stored, never the content of a store."""

import os
import shutil
import time
from pathlib import Path

import pytest
from content import (
    add_image,
    add_label,
    add_labeler,
    add_pair,
    add_prompt,
    add_scores,
    die_after,
    fill,
    forked,
    image_bytes,
)
from prefloop.cli import app
from prefloop.store import IntegrityError, PairStore, UsageError, prompt_id
from prefloop.store.check import check, logical_hashes
from prefloop.store.maintenance.backup import backup
from prefloop.store.maintenance.compact import compact
from prefloop.store.maintenance.gc import remove, unreferenced_images
from prefloop.store.maintenance.merge import merge
from prefloop.store.runs import run
from typer.testing import CliRunner

RUNNER = CliRunner()


def judged(store: PairStore, name: str = "me", n_prompts: int = 3) -> PairStore:
    """Many small parts: pairs, labels that were changed, scores, and a run with its two rows."""
    with run(store, "test", {}):
        pairs = fill(store, n_prompts)
    add_labeler(store, name)
    for pair in pairs:
        add_label(store, pair, name, "a")
        add_label(store, pair, name, "b", revision=1)
    add_scores(store, "red@1", dict.fromkeys(store.rows("select prompt_id, image_a from pairs"), 1.5))
    store.ingest()
    return store


# Compacting


def test_compacting_leaves_one_part_of_each_table_and_every_row(store: PairStore):
    before = logical_hashes(judged(store))
    n_parts = len(list(store.journal.iterdir()))
    # runs, prompts, images, pairs, scorers, scores, labelers, labels
    assert compact(store) == (n_parts, 8)
    assert sorted(path.name.split("-")[1] for path in store.journal.iterdir()) == sorted(
        ["runs", "prompts", "images", "pairs", "scorers", "scores", "labelers", "labels"]
    )
    assert logical_hashes(store) == before
    assert check(store) == []
    store.database.unlink()
    store.rebuild()
    assert logical_hashes(PairStore.open(store.path)) == before
    assert compact(store) == (8, 8)


def test_compacting_does_not_change_which_row_of_a_key_counts(store: PairStore):
    add_prompt(store, "one", turn="2nd")
    add_prompt(store, "two")
    store.ingest()
    compact(store)
    for turn in ("1st", "3rd"):
        row = {"prompt_id": prompt_id("one"), "prompt": "one", "split": "train", "tags": f'{{"turn":"{turn}"}}'}
        store.append("prompts", [row])  # as another process does that does not know the prompt yet
    store.ingest()
    for _ in range(2):
        assert store.rows("select tags from prompts where prompt = 'one'") == [('{"turn":"1st"}',)]
        compact(store)
        store.rebuild()


def test_a_process_that_knew_the_old_parts_continues(store: PairStore):
    other = PairStore.open(judged(store).path)
    compact(store)
    add_prompt(other, "new")
    assert other.ingest() == 1
    assert check(other) == []


def test_parts_that_are_compacted_during_the_wait_for_the_lock_are_not_missed(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
):
    waiting = PairStore.open(judged(store).path)
    add_prompt(waiting, "new")
    session = waiting.session

    def compacted_before(*, write: bool = False, wait: float | None = None):
        if write:
            monkeypatch.setattr(waiting, "session", session)
            compact(store)
        return session(write=write, wait=wait)

    waiting._ingested.clear()
    monkeypatch.setattr(waiting, "session", compacted_before)
    waiting.ingest()
    assert check(waiting) == []


@pytest.mark.slow(reason="kills processes and goes on from there")
def test_compacting_that_is_killed_anywhere_loses_nothing(tmp_path: Path):
    store = PairStore.create(tmp_path / "whole")
    for number in range(3):
        add_prompt(store, f"prompt {number}")
    add_labeler(store, "me")
    add_labeler(store, "you")
    store.ingest()
    before = logical_hashes(store)
    # of each of the two tables: part to disk, renamed, folder to disk, listed, old parts gone (3 and 2), folder to disk
    steps, killed = 5 + 3 + 5 + 2, 0
    for step in range(steps + 1):
        copy = tmp_path / str(step)
        shutil.copytree(store.path, copy)
        process = forked(die_after, step, copy, compact)
        process.join(60)
        killed += process.exitcode == 9
        opened = PairStore.open(copy)
        assert logical_hashes(opened) == before, step
        assert check(opened) == [], step
        compact(opened)
        assert len(list(opened.journal.glob("*.parquet"))) == 2
        assert logical_hashes(opened) == before, step
    assert killed == steps


# Merging


@pytest.mark.slow(reason="writes and reads whole stores")
def test_merging_adds_what_is_new_and_nothing_twice(store: PairStore, tmp_path: Path):
    judged(store, n_prompts=2)
    other = judged(PairStore.create(tmp_path / "other"), n_prompts=4)
    whole = judged(PairStore.create(tmp_path / "whole"), n_prompts=4)
    summary = merge(store, other)
    # two more prompts of two images, a pair and two labels; the other's run
    expected = {"runs": 1, "prompts": 2, "images": 4, "pairs": 2, "labels": 4, "scores": 2, "conflicts": 0}
    assert {name: n for name, n in summary.items() if n or name == "conflicts"} == expected
    ours, all_ = logical_hashes(store), logical_hashes(whole)
    assert {table: ours[table] for table in ours if table != "runs"} == {
        table: all_[table] for table in all_ if table != "runs"
    }
    assert store.rows("select status, count(*) from runs group by all") == [("done", 2)]
    assert check(store) == []
    parts = len(list(store.journal.iterdir()))
    assert set(merge(store, other).values()) == {0}
    assert len(list(store.journal.iterdir())) == parts
    store.rebuild()
    assert logical_hashes(store) == ours


def test_merging_keeps_our_label_if_both_stores_have_one_and_says_so(store: PairStore, tmp_path: Path):
    other = PairStore.create(tmp_path / "other")
    for one, choice, score in ((store, "a", 1.0), (other, "b", 2.0)):
        (pair,) = fill(one, n_prompts=1)
        add_labeler(one, "me")
        add_label(one, pair, "me", choice)
        add_scores(one, "red@1", dict.fromkeys(one.rows("select prompt_id, image_a from pairs"), score))
        one.ingest()
    assert merge(store, other)["conflicts"] == 2
    assert store.rows("select choice from labels") == [("a",)]
    assert store.rows("select score from scores") == [(1.0,)]


def test_a_name_that_means_two_things_is_refused(store: PairStore, tmp_path: Path):
    other = PairStore.create(tmp_path / "other")
    for one, config in ((store, '{"rule":"single"}'), (other, '{"rule":"majority"}')):
        one.append("labelers", [{"labeler": "pickscore", "kind": "ai", "config": config}])
        add_prompt(one, config)
        one.ingest()
    before = logical_hashes(store)
    with pytest.raises(UsageError, match=r"'pickscore' is .*majority"):
        merge(store, other)
    assert logical_hashes(store) == before


def test_a_store_is_not_merged_into_itself_nor_one_with_a_missing_image(store: PairStore, tmp_path: Path):
    with pytest.raises(UsageError, match="is the same store"):
        merge(store, PairStore.open(store.path))
    other = judged(PairStore.create(tmp_path / "other"))
    lost = next((other.path / "images").rglob("*.png"))
    lost.write_bytes(b"x")
    with pytest.raises(IntegrityError, match="has changed since it was stored"):
        merge(store, other)
    lost.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        merge(store, other)
    assert store.rows("select count(*) from pairs") == [(0,)]


def test_a_run_that_ended_after_a_merge_ends_here_with_the_next_merge(store: PairStore, tmp_path: Path):
    other = PairStore.create(tmp_path / "other")
    with run(other, "test", {}):
        merge(store, PairStore.open(other.path))
        assert store.rows("select status from runs") == [("running",)]
    merge(store, other)
    assert store.rows("select status from runs") == [("done",)]
    assert check(store) == []


# Backing up


def test_a_backup_is_a_store_with_the_same_content(store: PairStore, tmp_path: Path):
    judged(store)
    summary = backup(store, tmp_path / "copy")
    assert (summary["images"], summary["lost"]) == (6, [])
    copy = PairStore.open(tmp_path / "copy")
    assert logical_hashes(copy) == logical_hashes(store)
    assert check(copy) == []
    shutil.rmtree(store.path)
    assert check(PairStore.open(tmp_path / "copy")) == []


def test_a_backup_names_the_images_it_could_not_copy(store: PairStore, tmp_path: Path):
    judged(store)
    lost = sorted((store.path / "images").rglob("*.png"))[:2]
    lost[0].unlink()
    lost[1].write_bytes(image_bytes((9, 9, 9)))
    ended = RUNNER.invoke(app, ["store", "backup", str(tmp_path / "copy"), "--store", str(store.path)])
    assert ended.exit_code == 5
    assert "2 images are missing or have changed" in ended.stderr
    assert len(list((tmp_path / "copy" / "images").rglob("*.png"))) == 4


# Removing


def old(path: Path) -> Path:
    past = time.time() - 7200
    os.utime(path, (past, past))
    return path


def test_only_old_unreferenced_images_are_removed(store: PairStore):
    judged(store)
    mentioned = [old(path) for path in sorted((store.path / "images").rglob("*.png"))]
    lone = old(store.image_path(store.write_image(image_bytes((1, 2, 3)), 8, 8)["image_id"]))
    half = lone.with_name(f".{lone.name}.1.tmp")
    half.write_bytes(b"half")
    old(half)
    young = store.image_path(store.write_image(image_bytes((4, 5, 6)), 8, 8)["image_id"])
    others = [store.path / "images" / name for name in ("notes.txt", "holiday.png", f"{lone.parent.name}/holiday.png")]
    for path in others:  # somebody else's
        path.write_bytes(b"kept")
        old(path)
    found = unreferenced_images(store)
    assert {path for path, _ in found} == {lone, half}
    assert all(path.exists() for path, _ in found)
    remove(found)
    left = {path for path in (store.path / "images").rglob("*") if path.is_file()}
    assert left == {*mentioned, young, *others}
    assert check(store) == []


def test_an_image_that_is_written_again_is_young_again(store: PairStore):
    path = old(store.image_path(store.write_image(image_bytes((1, 2, 3)), 8, 8)["image_id"]))
    assert [found for found, _ in unreferenced_images(store)] == [path]
    store.write_image(image_bytes((1, 2, 3)), 8, 8)  # its row is about to come
    assert unreferenced_images(store) == []


def test_an_image_of_a_part_that_is_not_ingested_yet_stays(store: PairStore):
    identity = add_image(store, (1, 2, 3))  # in the journal alone
    old(store.image_path(identity))
    assert unreferenced_images(store) == []


def test_gc_prints_what_it_would_remove_and_then_removes_it(store: PairStore):
    lone = old(store.image_path(store.write_image(image_bytes((1, 2, 3)), 8, 8)["image_id"]))
    words = ["store", "gc", "--store", str(store.path)]
    ended = RUNNER.invoke(app, [*words, "--dry-run"])
    assert ended.stdout.startswith("would remove 1 unreferenced images")
    assert lone.exists()
    assert RUNNER.invoke(app, words).exit_code == 0
    assert not lone.exists()


# The command line


BAD = [
    ("merge other --store stroe", 1, "no store at stroe"),
    ("merge stroe --store STORE", 1, "no store at stroe"),
    ("merge STORE --store STORE", 2, "is the same store"),
    ("backup out --store stroe", 1, "no store at stroe"),
    ("backup there --store STORE", 2, "there exists; name another folder"),
    ("gc --store stroe", 1, "no store at stroe"),
    ("compact --store stroe", 1, "no store at stroe"),
    ("migrate --store stroe", 1, "no store at stroe"),
]


@pytest.mark.parametrize(("line", "code", "message"), BAD, ids=[line for line, _, _ in BAD])
def test_errors_are_one_line_and_nothing_is_created(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, message: str
):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    ended = RUNNER.invoke(app, ["store", *(str(store.path) if word == "STORE" else word for word in line.split())])
    assert (ended.exit_code, ended.stdout) == (code, "")
    (said,) = ended.stderr.splitlines()
    assert message in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "there"]


def test_the_commands_print_what_they_did(store: PairStore, tmp_path: Path):
    judged(store)
    other = PairStore.create(tmp_path / "other")
    add_pair(other, add_prompt(other, "one"), add_image(other, (1, 1, 1)), add_image(other, (2, 2, 2)))
    other.ingest()

    def said(*words: object) -> str:
        ended = RUNNER.invoke(app, ["store", *map(str, words), "--store", str(store.path)])
        assert ended.exit_code == 0, ended.stderr
        return ended.stdout

    assert said("merge", other.path) == f"new from {other.path}: 1 prompts, 2 images, 1 pairs\n"
    assert said("merge", other.path) == f"new from {other.path}: nothing\n"
    assert said("compact").endswith("journal parts to 8\n")
    assert said("backup", tmp_path / "copy") == f"copied 8 journal parts and 8 images to {tmp_path / 'copy'}\n"
    assert said("migrate") == f"{store.path} has schema version 5; nothing to do\n"
