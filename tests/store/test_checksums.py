"""Every change to the bytes of a journal part is found and named, whether the part is ingested or not."""

import shutil
from pathlib import Path
from uuid import UUID

import pytest
from content import add_generation, add_label, add_labeler, add_scores, fill
from prefloop.cli import app
from prefloop.store import IntegrityError, PairStore, journal
from prefloop.store.check import check, logical_hashes
from prefloop.store.evaluations import add_evaluation
from prefloop.store.maintenance.backup import backup
from prefloop.store.maintenance.compact import compact
from prefloop.store.maintenance.merge import merge
from prefloop.store.maintenance.migrate import migrate
from prefloop.store.parts import damage, has_checksum
from prefloop.store.runs import run
from typer.testing import CliRunner

RUNNER = CliRunner()


@pytest.fixture
def every_table(store: PairStore) -> PairStore:
    """A part of each table, the rows in the tables."""
    with run(store, "test", {}):
        (pair,) = fill(store, n_prompts=1)
    ((prompt, image),) = store.rows("select prompt_id, image_a from pairs")
    store.append("models", [{"model_id": UUID(int=1), "name": "m", "config": "{}"}])
    generation = add_generation(store, prompt, UUID(int=1), image)
    add_evaluation(store, {generation: (0, {})})
    add_scores(store, "red@1", {(prompt, image): 1.5})
    add_labeler(store, "me")
    add_label(store, pair, "me", "a")
    texts = {
        "judge": "vlm@1",
        "answer": "first",
        "model": "m",
        "template": "pair",
        "template_hash": "1",
        "details": "{}",
    }
    store.append("answers", [{"answer_id": UUID(int=2), "prompt_id": prompt, "image_id": image, **texts}])
    store.ingest()
    return store


def one_part_of_each_table(store: PairStore) -> list[Path]:
    found = {table: name for name, table in journal.parts(store.journal).items()}
    assert found.keys() == journal.TABLES.keys()
    return [store.journal / name for name in found.values()]


@pytest.mark.slow(reason="writes and reads whole stores")
def test_every_flipped_bit_and_every_truncation_of_a_part_is_found(every_table: PairStore):
    for part in one_part_of_each_table(every_table):
        assert damage(part) is None
        good = part.read_bytes()
        # a bit of every seventh byte, and all of the footer's last ones
        for at in [*range(0, len(good), 7), *range(len(good) - 16, len(good))]:
            part.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
            assert damage(part), (part.name, at)
        for length in (0, 4, len(good) // 2, len(good) - 1):
            part.write_bytes(good[:length])
            assert damage(part), (part.name, length)
        part.write_bytes(good + b"\0")
        assert damage(part)
        part.write_bytes(good)
    assert check(every_table) == []


@pytest.mark.slow(reason="writes and reads whole stores")
@pytest.mark.parametrize("how", ["flipped", "cut"])
@pytest.mark.parametrize("ingested", [True, False])
def test_every_reader_of_a_damaged_part_names_it(every_table: PairStore, tmp_path: Path, how: str, ingested: bool):
    store = every_table
    if not ingested:
        add_labeler(store, "you")
    part = sorted(store.journal.glob("*-labelers-*.parquet"))[-1]
    data = part.read_bytes()
    part.write_bytes(data[:-9] if how == "cut" else data[:40] + bytes([data[40] ^ 4]) + data[41:])
    copy = tmp_path / "copy"
    calls = [store.rebuild, lambda: store.rebuild(allow_missing=True), lambda: backup(store, copy)]
    if ingested:
        assert ("damaged journal part", part.name) in [(p.what, p.where) for p in check(PairStore.open(store.path))]
        calls.append(lambda: compact_two_labelers(store))
    else:
        calls += [store.ingest, lambda: PairStore.open(store.path)]
        assert [(p.what, p.where) for p in check(store)] == [("damaged journal part", part.name)]
    for call in calls:
        with pytest.raises(IntegrityError, match=part.name) as caught:
            call()
        assert caught.value.exit_code == 5
    with pytest.raises(IntegrityError, match=str(part)):
        backup(store, copy)  # the part is named, not its copy
    assert not copy.exists()
    assert store.rows("select labeler from labelers where labeler <> 'other'") == [("me",)]


def test_a_damaged_part_beside_a_missing_one_is_named(every_table: PairStore):
    sorted(every_table.journal.glob("*-labels-*.parquet"))[0].unlink()
    part = sorted(every_table.journal.glob("*-pairs-*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=part.name):
        every_table.rebuild()
    assert [p.what for p in check(every_table) if "part" in p.what] == ["damaged journal part", "missing journal part"]


def compact_two_labelers(store: PairStore) -> None:
    add_labeler(store, "other")
    compact(store)


@pytest.mark.slow(reason="writes and reads whole stores")
def test_a_store_with_a_damaged_part_is_merged_from_its_tables_and_the_part_is_named(
    every_table: PairStore, tmp_path: Path
):
    ours = PairStore.create(tmp_path / "ours")
    part = sorted(every_table.journal.glob("*-labels-*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-1])
    ended = RUNNER.invoke(app, ["store", "merge", str(every_table.path), "--store", str(ours.path)])
    assert ended.exit_code == 5
    assert part.name in ended.stderr
    # the tables hold what was ingested while the part was intact
    assert logical_hashes(ours) == logical_hashes(every_table)
    assert check(ours) == []
    assert set(merge(ours, every_table).values()) == {0}


@pytest.mark.slow(reason="writes and reads whole stores")
def test_check_says_how_many_parts_have_no_checksum_and_compacting_adds_it(first_version: PairStore):
    migrate(first_version)
    words = ["store", "check", "--store", str(first_version.path)]
    n = len(journal.parts(first_version.journal))
    ended = RUNNER.invoke(app, words)
    assert ended.exit_code == 0, ended.stderr
    assert f"{n} journal parts of an earlier prefloop have no checksum" in ended.stdout
    before = logical_hashes(first_version)
    compact(first_version)
    assert all(map(has_checksum, journal.parts(first_version.journal)))
    assert RUNNER.invoke(app, words).stdout == f"{first_version.path} is intact\n"
    assert logical_hashes(first_version) == before


def test_a_truncated_part_without_a_checksum_is_named(first_version: PairStore):
    part = sorted(first_version.journal.glob("*-labels-*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match=part.name):
        first_version.rebuild()


@pytest.mark.parametrize(
    "name",
    ["zzz.parquet", "01795536539404796773-labels-1-abc (1).parquet", "01795536539404796773-odd-1-0123abcd.parquet"],
)
def test_a_foreign_file_in_the_journal_is_named(every_table: PairStore, name: str):
    part = sorted(every_table.journal.glob("*-labels-*.parquet"))[0]
    shutil.copy(part, every_table.journal / name)
    for command in (["stats"], ["check"], ["rebuild"], ["compact"]):
        ended = RUNNER.invoke(app, ["store", *command, "--store", str(every_table.path)])
        assert ended.exit_code == 5
        (line,) = ended.stderr.splitlines()
        assert f"{name} is not a part of the journal" in line
    (every_table.journal / name).unlink()
    assert check(PairStore.open(every_table.path)) == []
