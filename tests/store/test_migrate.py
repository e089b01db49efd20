"""Stores of schema versions 1, which prefloop 0.1 wrote, 2, 3 and 4, and journals that hold parts of several versions."""

import json
from pathlib import Path
from uuid import UUID

import duckdb
import pyarrow.parquet as pq
import pytest
from conftest import kept_store
from content import TESTS, add_labeler, fill
from prefloop.cli import app
from prefloop.store import IntegrityError, PairStore, journal
from prefloop.store.check import check, logical_hashes
from prefloop.store.maintenance.backup import backup
from prefloop.store.maintenance.compact import compact
from prefloop.store.maintenance.merge import merge
from prefloop.store.maintenance.migrate import migrate
from typer.testing import CliRunner

RUNNER = CliRunner()
OLD_NAMES = {"revision": "rep", "response_ms": "ms", "sampling": "sampler"}
EXPECTED, OF_VERSION_2, OF_VERSION_3, OF_VERSION_4 = (
    json.loads((TESTS / "stores" / f"v{version}.json").read_text()) for version in (1, 2, 3, 4)
)
# columns of views that a version had, and of runs those that do not depend on the machine
LABELS = "pair_id, labeler, revision, choice, p_a, margin, shown_left, response_ms, run_id"
COLUMNS = {
    "labels": LABELS,
    "runs": "run_id, kind, status, summary",
    "preferences": "labeler, pair_id, prompt, prompt_id, chosen, rejected, p_chosen, margin, split, tags, source",
}
COLUMNS_OF_VERSION_2 = {
    "labels": LABELS,
    "runs": "run_id, kind, status, parents, summary",
    "preferences": COLUMNS["preferences"] + ", chosen_model, rejected_model, run_id",
}
COLUMNS_OF_VERSION_3 = {"labels": LABELS, "current_labels": LABELS, "runs": COLUMNS_OF_VERSION_2["runs"]}


def contents(store: PairStore, expected: dict = EXPECTED, columns: dict = COLUMNS) -> dict[str, list]:
    """Every row of the tables and views that a version had."""
    answers = {}
    for table in expected:
        rows = store.rows(f"select {columns.get(table, '*')} from {table} order by all")
        answers[table] = [[None if value is None else str(value) for value in row] for row in rows]
    return answers


def append_as_0_1(store: PairStore, table: str, rows: list[dict]) -> Path:
    """A part with the column names of version 1."""
    part = journal.append(store.journal, table, rows)
    assert part is not None
    written = pq.read_table(part)
    part.unlink()
    old = written.rename_columns([OLD_NAMES.get(name, name) for name in written.schema.names])
    return journal.write_part(store.journal, table, old, part.name.split("-")[0])


def files(folder: Path) -> dict[str, bytes]:
    locks = {"store.lock", "locks"}
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in locks}


def old_columns(store: PairStore) -> set[str]:
    """Columns of version 1 in the parts of the journal."""
    names = {name for part in store.journal.glob("*.parquet") for name in pq.read_schema(part).names}
    return names & set(OLD_NAMES.values())


COMMANDS = [
    "store ls",
    "store stats",
    "store check",
    "store agreement",
    "store schema",
    "store compact",
    "store gc",
    "store backup copy",
    "store merge other",
    "store query from_labels",
    "store export exported --format csv",
    "relabel --scorer oracle",
    "train --labeler me --output-dir tuned",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_on_a_store_of_version_1_name_the_cure_and_change_nothing(
    first_version: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
):
    monkeypatch.chdir(tmp_path)
    before = files(first_version.path)
    ended = RUNNER.invoke(app, [*line.split(), "--store", str(first_version.path)])
    assert (ended.exit_code, ended.stdout) == (5, "")
    (message,) = ended.stderr.splitlines()
    assert f"run `prefloop store migrate --store {first_version.path}`" in message
    assert files(first_version.path) == before


def test_migrate_gives_every_row_and_the_answers_of_every_view(first_version: PairStore):
    ended = RUNNER.invoke(app, ["store", "migrate", "--store", str(first_version.path)])
    assert ended.exit_code == 0, ended.stderr
    assert "has schema version 5; it had 1, and the old database is pairs.duckdb.old" in ended.stdout
    opened = PairStore.open(first_version.path)
    assert len(EXPECTED["labels"]) == 13
    assert contents(opened) == EXPECTED
    assert check(opened) == []
    assert old_columns(opened) == {"rep", "ms", "sampler"}  # the journal is left as it is
    with duckdb.connect(first_version.path / "pairs.duckdb.old", read_only=True) as kept:
        assert kept.execute("select schema_version from meta").fetchall() == [(1,)]
    assert migrate(first_version) == (5, 5)


def test_a_store_of_version_2_is_refused_until_it_is_migrated_and_then_knows_its_rounds(tmp_path: Path):
    store = kept_store(2, tmp_path)
    before = files(store.path)
    with pytest.raises(IntegrityError, match=r"has schema version 2 .* run `prefloop store migrate"):
        PairStore.open(store.path)
    assert files(store.path) == before
    assert migrate(store) == (2, 5)
    opened = PairStore.open(store.path)
    assert len(OF_VERSION_2["labels"]) == 18
    assert contents(opened, OF_VERSION_2, COLUMNS_OF_VERSION_2) == OF_VERSION_2
    assert check(opened) == []
    # two pairs of each of two prompts in each round, one evaluation pair in the second, one pair from elsewhere
    rows = "select round, source, count(distinct pair_id) from preferences group by all order by all"
    assert opened.rows(rows) == [(1, "generate", 4), (2, "eval", 1), (2, "generate", 4), (None, "import", 1)]
    with duckdb.connect(store.path / "pairs.duckdb.old", read_only=True) as kept:
        assert kept.execute("select schema_version from meta").fetchall() == [(2,)]


def test_a_store_of_version_3_is_refused_until_it_is_migrated_and_then_has_evaluations(tmp_path: Path):
    store = kept_store(3, tmp_path)
    with pytest.raises(IntegrityError, match=r"has schema version 3 .* run `prefloop store migrate"):
        PairStore.open(store.path)
    assert migrate(store) == (3, 5)
    opened = PairStore.open(store.path)
    assert len(OF_VERSION_3["run_rounds"]) == 5
    assert contents(opened, OF_VERSION_3, COLUMNS_OF_VERSION_3) == OF_VERSION_3
    assert opened.rows("select count(*) from evaluations") == [(0,)]
    assert check(opened) == []


@pytest.mark.slow(reason="writes and reads whole stores")
def test_a_store_of_version_4_is_refused_until_it_is_migrated_and_then_takes_notes(tmp_path: Path):
    store = kept_store(4, tmp_path)
    with pytest.raises(IntegrityError, match=r"has schema version 4 .* run `prefloop store migrate"):
        PairStore.open(store.path)
    assert migrate(store) == (4, 5)
    opened = PairStore.open(store.path)
    assert len(OF_VERSION_4["labels"]) == 25
    assert contents(opened, OF_VERSION_4, COLUMNS_OF_VERSION_3) == OF_VERSION_4
    # ann chose left, tie, skip, right (undone), tie, left: five pairs, one of them skipped
    rows = "select choice, count(*), count(comment), count(question) from human_labels where labeler = 'human:ann' group by all"
    assert {choice: (n, *noted) for choice, n, *noted in opened.rows(rows)}["tie"] == (2, 0, 0)
    ((pair,),) = opened.rows("select min(pair_id) from human_labels where labeler = 'human:ann' and choice = 'tie'")
    noted = {"pair_id": pair, "labeler": "human:ann", "revision": 5, "choice": "tie", "shown_left": "a"}
    opened.append("labels", [noted | {"notes": '{"both_bad":true,"comment":"six fingers"}'}])
    for renewed in (opened.ingest, lambda: compact(opened), opened.rebuild):
        renewed()
        assert opened.rows("select pair_id, both_bad, comment from human_labels where both_bad") == [
            (pair, True, "six fingers")
        ]
        assert check(opened) == []
    assert opened.rows("select count(*) from labels where notes is not null") == [(1,)]


def test_rebuild_migrates_too(first_version: PairStore):
    first_version.rebuild()
    assert contents(PairStore.open(first_version.path)) == EXPECTED


def test_a_migration_without_a_part_of_the_journal_is_refused(first_version: PairStore):
    part = next(first_version.journal.glob("*-labels-*.parquet"))
    part.unlink()
    with pytest.raises(IntegrityError, match=part.name):
        migrate(first_version)
    assert first_version.schema_version() == 1


def mixed(store: PairStore) -> PairStore:
    """A migrated store to which writers of both versions have added revisions of labels, and generations."""
    migrate(store)
    opened = PairStore.open(store.path)
    pairs = [pair for (pair,) in opened.rows("select pair_id from pairs order by pair_id")]
    row = {"labeler": "me", "choice": "b", "shown_left": "a"}
    append_as_0_1(opened, "labels", [row | {"pair_id": pair, "revision": 7, "response_ms": 700} for pair in pairs])
    opened.append("labels", [row | {"pair_id": pair, "revision": 8, "response_ms": 800} for pair in pairs[:3]])
    prompt, image = opened.rows("select prompt_id, image_id from generations order by all limit 1")[0]
    generation = {"prompt_id": prompt, "image_id": image, "model_id": UUID(int=1), "seed": 5, "image_index": 0}
    append_as_0_1(opened, "generations", [generation | {"generation_id": UUID(int=50), "sampling": '{"steps":1}'}])
    opened.append("generations", [generation | {"generation_id": UUID(int=51), "sampling": '{"steps":2}'}])
    opened.ingest()
    return opened


@pytest.mark.slow(reason="writes and reads whole stores")
def test_parts_of_both_versions_are_read_wherever_the_journal_is(first_version: PairStore, tmp_path: Path):
    store = mixed(first_version)
    rows = "select revision, response_ms, count(*) from labels where revision >= 7 group by all order by all"
    assert store.rows(rows) == [(7, 700, 6), (8, 800, 3)]
    assert store.rows("select sampling from generations where seed = 5 order by all") == [
        ('{"steps":1}',),
        ('{"steps":2}',),
    ]
    before = logical_hashes(store)
    assert check(store) == []
    store.rebuild()
    assert logical_hashes(store) == before
    backup(store, tmp_path / "copy")
    copy = PairStore.open(tmp_path / "copy")
    assert logical_hashes(copy) == before
    merged = PairStore.create(tmp_path / "merged")
    merge(merged, copy)
    assert logical_hashes(merged) == before
    compact(store)
    assert logical_hashes(store) == before
    assert check(store) == []
    assert old_columns(store) == set()
    store.rebuild()
    assert logical_hashes(store) == before


@pytest.mark.parametrize("old_first", [True, False])
def test_of_two_rows_of_one_key_the_same_one_counts_whichever_version_wrote_it(store: PairStore, old_first: bool):
    (pair,) = fill(store, n_prompts=1)
    add_labeler(store, "me")
    writers = [append_as_0_1, PairStore.append] if old_first else [PairStore.append, append_as_0_1]
    for write, choice in zip(writers, ("b", "a"), strict=True):
        write(store, "labels", [{"pair_id": pair, "labeler": "me", "revision": 0, "choice": choice}])
    for _ in range(2):
        store.ingest()
        assert store.rows("select choice from labels") == [("a",)]
        compact(store)
        store.rebuild()


def test_an_interrupted_migration_leaves_the_store_as_it_was(first_version: PairStore, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("prefloop.store.rebuild._keep", killed)
        with pytest.raises(KeyboardInterrupt):
            migrate(first_version)
    assert first_version.schema_version() == 1
    migrate(first_version)
    assert contents(PairStore.open(first_version.path)) == EXPECTED


def test_a_newer_schema_is_refused_and_left_alone(store: PairStore):
    with duckdb.connect(store.database) as connection:
        connection.execute("update meta set schema_version = 99")
    for attempt in (PairStore.open, lambda path: migrate(PairStore(path))):
        with pytest.raises(IntegrityError, match="has schema version 99 and this prefloop reads 5; update prefloop"):
            attempt(store.path)
    assert store.schema_version() == 99


def test_a_merge_names_the_store_that_must_be_migrated(store: PairStore, first_version: PairStore):
    ended = RUNNER.invoke(app, ["store", "merge", str(first_version.path), "--store", str(store.path)])
    assert ended.exit_code == 5
    assert f"prefloop store migrate --store {first_version.path}" in ended.stderr
