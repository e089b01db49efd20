"""The journal merges its own small parts, in sizes, and loses nothing whenever it is killed."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from content import add_label, add_labeler, add_prompt, die_after, fill, forked
from prefloop.core.errors import WriteError
from prefloop.store import PairStore, compaction
from prefloop.store.check import check, logical_hashes


def n_rows(store: PairStore, table: str = "prompts") -> list[int]:
    """Rows of each part of a table, oldest first."""
    return [pq.read_metadata(path).num_rows for path in sorted(store.journal.glob(f"*-{table}-*"))]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four parts of a size are too many; up to 2 rows are small, up to 8 medium."""
    monkeypatch.setattr(compaction, "MANY", 3)
    monkeypatch.setattr(compaction, "SIZES", ((0, 2), (2, 8)))


@pytest.mark.slow(reason="writes and reads whole stores")
@pytest.mark.usefixtures("few")
def test_parts_of_one_row_become_medium_and_then_large_ones(store: PairStore):
    seen = []
    for number in range(19):
        add_prompt(store, f"prompt {number}")
        store.ingest()
        seen.append(n_rows(store))
    assert seen[2] == [1, 1, 1]
    assert seen[3] == [4]  # the fourth is one too many
    assert seen[14] == [4, 4, 4, 1, 1, 1]
    assert seen[15] == [16]  # four medium ones too
    assert seen[18] == [16, 1, 1, 1]
    assert store.rows("select count(*) from prompts") == [(19,)]
    assert check(store) == []
    before = logical_hashes(store)
    store.database.unlink()
    store.rebuild()
    assert logical_hashes(PairStore.open(store.path)) == before


@pytest.mark.usefixtures("few")
def test_a_process_that_knows_the_old_parts_goes_on(store: PairStore):
    for number in range(3):
        add_prompt(store, f"prompt {number}")
    store.ingest()
    other = PairStore.open(store.path)
    add_prompt(store, "prompt 3")
    store.ingest()
    assert other.ingest() == 0
    add_prompt(other, "prompt 4")
    assert other.ingest() == 1
    assert n_rows(other) == [4, 1]
    assert check(other) == []


@pytest.mark.usefixtures("few")
def test_a_merge_takes_at_most_the_rows_that_fit(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compaction, "ROWS", 5)
    for number in range(8):
        add_prompt(store, f"prompt {number}")
    store.ingest()
    assert n_rows(store) == [5, 1, 1, 1]


@pytest.mark.usefixtures("few")
def test_a_damaged_part_stays_and_is_named(store: PairStore):
    for number in range(5):
        add_prompt(store, f"prompt {number}")
        if number == 1:
            store.ingest()
    first = min(store.journal.glob("*-prompts-*"))
    data = first.read_bytes()
    first.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    store.ingest()
    assert len(list(store.journal.glob("*-prompts-*"))) == 2
    assert first.exists()
    assert ("damaged journal part", first.name) in [(problem.what, problem.where) for problem in check(store)]


@pytest.mark.usefixtures("few")
def test_rows_are_ingested_even_if_their_parts_cannot_be_merged(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    for number in range(5):
        add_prompt(store, f"prompt {number}")

    def full(*_: object) -> None:
        raise WriteError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(compaction.journal, "write_part", full)
        assert store.ingest() == 5
    assert n_rows(store) == [1] * 5
    add_prompt(store, "prompt 5")
    assert store.ingest() == 1
    assert n_rows(store) == [6]


def ingest_and_merge(store: PairStore) -> None:
    """In a process of its own, which has no fixture."""
    compaction.MANY = 2
    store.ingest()


@pytest.mark.slow(reason="kills processes and goes on from there")
def test_a_journal_that_is_killed_while_it_merges_loses_nothing(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (pair,) = fill(store, n_prompts=1)
    add_labeler(store, "me")
    store.ingest()
    for revision in range(3):
        add_label(store, pair, "me", "ab"[revision % 2], revision=revision)
    whole = PairStore(shutil.copytree(store.path, tmp_path / "whole"))
    whole.ingest()
    expected, killed, opened = logical_hashes(whole), 0, whole
    monkeypatch.setattr(compaction, "MANY", 2)
    # part to disk, renamed, folder to disk, listed, three old parts gone, folder to disk
    steps = 3 + 1 + 3 + 1
    for step in range(steps + 1):
        copy = shutil.copytree(store.path, tmp_path / str(step))
        process = forked(die_after, step, copy, ingest_and_merge)
        process.join(60)
        killed += process.exitcode == 9
        opened = PairStore.open(copy)
        assert logical_hashes(opened) == expected, step
        opened._ingested.clear()
        opened.ingest()  # which merges what is left
        # what a kill left twice stays twice: the new part, and the old ones merged again
        assert n_rows(opened, "labels") in ([3], [3, 3], [3, 1], [3, 1, 1], [3, 1, 1, 1]), step
        assert check(opened) == [], step
    assert killed == steps
    assert n_rows(opened, "labels") == [3]
