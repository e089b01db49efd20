"""A rebuild notices missing journal parts, and keeps the database it replaces."""

import shutil
from pathlib import Path

import duckdb
import pytest
from content import add_labeler, add_prompt, fill
from prefloop.cli import app
from prefloop.store import IntegrityError, PairStore
from prefloop.store.check import check, logical_hashes
from prefloop.store.maintenance.backup import backup
from prefloop.store.maintenance.compact import compact
from typer.testing import CliRunner

RUNNER = CliRunner()


@pytest.fixture
def labelled_store(store: PairStore) -> PairStore:
    """Twelve labels in three parts of four."""
    pairs = fill(store, n_prompts=12)
    add_labeler(store, "me")
    for first in range(0, 12, 4):
        rows = [{"pair_id": pair, "labeler": "me", "revision": 0, "choice": "a"} for pair in pairs[first : first + 4]]
        store.append("labels", rows)
    store.ingest()
    return store


def part_of(store: PairStore, table: str) -> Path:
    return sorted(store.journal.glob(f"*-{table}-*.parquet"))[0]


def kept(store: PairStore) -> Path:
    return store.path / "pairs.duckdb.old"


def n_labels(database: Path) -> int:
    with duckdb.connect(database, read_only=True) as connection:
        ((n,),) = connection.execute("select count(*) from labels").fetchall()
    return n


def test_a_rebuild_without_a_part_that_the_database_lists_is_refused(labelled_store: PairStore):
    store, before = labelled_store, logical_hashes(labelled_store)
    lost = part_of(store, "labels")
    lost.unlink()
    with pytest.raises(IntegrityError, match=rf"{lost.name}.*--allow-missing") as caught:
        store.rebuild()
    assert caught.value.exit_code == 5
    assert logical_hashes(store) == before  # the database is as it was
    assert not kept(store).exists()
    assert not list(store.path.glob(".pairs.*"))


def test_a_rebuild_with_allow_missing_names_the_parts_and_keeps_the_old_database(labelled_store: PairStore):
    store = labelled_store
    lost = part_of(store, "labels")
    lost.unlink()
    words = ["store", "rebuild", "--store", str(store.path)]
    ended = RUNNER.invoke(app, words)
    assert (ended.exit_code, ended.stdout) == (5, "")
    assert lost.name in ended.stderr
    ended = RUNNER.invoke(app, [*words, "--allow-missing"])
    assert ended.exit_code == 0, ended.stderr
    assert f"without 1 missing part: {lost.name}" in ended.stdout
    assert "pairs.duckdb.old" in ended.stdout
    assert (n_labels(store.database), n_labels(kept(store))) == (8, 12)
    assert check(PairStore.open(store.path)) == []
    assert RUNNER.invoke(app, words).exit_code == 0  # what is gone is known to be gone
    assert n_labels(kept(store)) == 8  # the database of the rebuild before


@pytest.mark.parametrize("state", ["gone", "cut"])
def test_a_rebuild_without_a_readable_database_says_so_and_builds_it(labelled_store: PairStore, state: str):
    store, before = labelled_store, logical_hashes(labelled_store)
    if state == "gone":
        store.database.unlink()
    else:
        store.database.write_bytes(b"cut")
    ended = RUNNER.invoke(app, ["store", "rebuild", "--store", str(store.path)])
    assert ended.exit_code == 0, ended.stderr
    assert "it is not known whether journal parts are missing" in ended.stderr
    assert logical_hashes(store) == before
    assert not kept(store).exists()
    assert (store.path / "pairs.duckdb.damaged").exists() == (state == "cut")


@pytest.mark.parametrize("state", ["gone", "cut"])
def test_the_kept_database_lists_missing_parts_if_the_current_one_cannot_be_read(labelled_store: PairStore, state: str):
    store, words = labelled_store, ["store", "rebuild", "--store", str(labelled_store.path)]
    assert RUNNER.invoke(app, words).exit_code == 0  # keeps one that lists every part
    lost = part_of(store, "labels")
    lost.unlink()
    if state == "gone":
        store.database.unlink()
    else:
        store.database.write_bytes(b"cut")
    ended = RUNNER.invoke(app, words)
    assert (ended.exit_code, ended.stdout) == (5, "")
    assert lost.name in ended.stderr
    assert RUNNER.invoke(app, [*words, "--allow-missing"]).exit_code == 0
    assert (n_labels(store.database), n_labels(kept(store))) == (8, 12)


def test_a_write_ahead_log_goes_with_the_database_it_belongs_to(labelled_store: PairStore):
    store = labelled_store
    log = Path(f"{store.database}.wal")
    with duckdb.connect(store.database) as connection:
        connection.execute("pragma disable_checkpoint_on_shutdown")
        connection.execute("create table mine as select 1 as x")
    assert log.exists()
    store.rebuild()
    assert not log.exists()
    with duckdb.connect(kept(store), read_only=True) as connection:
        assert connection.execute("from mine").fetchall() == [(1,)]


# Compacted journals


@pytest.fixture
def older(labelled_store: PairStore, tmp_path: Path) -> Path:
    """A copy of the database from before the journal was compacted, twice."""
    copy = tmp_path / "older.duckdb"
    shutil.copy(labelled_store.database, copy)
    for text in ("new", "newer"):
        compact(labelled_store)
        add_prompt(labelled_store, text)
        labelled_store.ingest()
    compact(labelled_store)
    return copy


def test_an_older_database_with_a_compacted_journal_reports_no_missing_part(labelled_store: PairStore, older: Path):
    store, before = labelled_store, logical_hashes(labelled_store)
    shutil.copy(older, store.database)
    assert store.rebuild() == 5  # prompts, images, pairs, labelers, labels
    assert logical_hashes(store) == before
    shutil.copy(older, store.database)
    opened = PairStore.open(store.path)  # without a rebuild
    assert logical_hashes(opened) == before
    assert check(opened) == []
    assert opened.rows("select count(*) from parts") == [(5,)]


@pytest.mark.parametrize("database", ["newer", "older"])
def test_a_missing_compacted_part_is_reported(labelled_store: PairStore, older: Path, database: str):
    store = labelled_store
    if database == "older":
        shutil.copy(older, store.database)
    part_of(store, "labels").unlink()
    with pytest.raises(IntegrityError, match="-labels-"):
        store.rebuild()
    assert n_labels(store.database) == 12


def test_a_backup_without_a_part_is_not_made(labelled_store: PairStore, tmp_path: Path):
    lost = part_of(labelled_store, "labels")
    lost.unlink()
    with pytest.raises(IntegrityError, match=lost.name):
        backup(labelled_store, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_migration_without_a_part_is_refused(labelled_store: PairStore):
    with duckdb.connect(labelled_store.database) as connection:
        connection.execute("update meta set schema_version = 0")
    part_of(labelled_store, "labels").unlink()
    ended = RUNNER.invoke(app, ["store", "migrate", "--store", str(labelled_store.path)])
    assert ended.exit_code == 5
    assert "--allow-missing" in ended.stderr
