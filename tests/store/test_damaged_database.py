"""A damaged database, or one beside a foreign write-ahead log, is named with its cure."""

import os
import shutil
from pathlib import Path

import pytest
from content import add_label, add_labeler, add_prompt, fill
from prefloop.cli import app
from prefloop.store import IntegrityError, PairStore, journal
from prefloop.store.check import check, logical_hashes
from prefloop.store.ingest import ingest_parts, ingested_parts
from typer.testing import CliRunner

RUNNER = CliRunner()


def _take_and_die(store: PairStore) -> None:
    """Leave the rows in the database's write-ahead log, as a process that is killed does."""
    with store.session(write=True) as connection:
        taken = ingested_parts(connection)
        new = {name: table for name, table in journal.parts(store.journal).items() if name not in taken}
        ingest_parts(connection, store.journal, new)
        os._exit(0)


def test_a_stale_write_ahead_log_under_a_newer_database_is_found_on_opening(store: PairStore, tmp_path: Path):
    fill(store, n_prompts=1)
    add_prompt(store, "in the log")
    if (child := os.fork()) == 0:
        _take_and_die(store)
    assert os.waitpid(child, 0)[1] == 0
    log = Path(f"{store.database}.wal")
    shutil.copy(log, tmp_path / "stale")
    add_prompt(store, "later")
    before = logical_hashes(PairStore.open(store.path))
    assert not log.exists()
    shutil.copy(tmp_path / "stale", log)
    with pytest.raises(IntegrityError, match=r"has duplicate rows.*prefloop store rebuild"):
        PairStore.open(store.path)
    assert store.rows("select count(*) > count(distinct prompt_id) from prompts") == [(True,)]
    store.rebuild()
    assert logical_hashes(PairStore.open(store.path)) == before
    assert check(store) == []


COMMANDS = (["stats"], ["ls"], ["agreement"], ["query", "from labels"], ["export", "OUT", "--format", "csv"], ["check"])


@pytest.mark.slow(reason="writes and reads whole stores")
def test_a_damaged_block_ends_every_command_with_one_line_and_the_cure(store: PairStore, tmp_path: Path):
    add_labeler(store, "me")
    for pair in fill(store, n_prompts=2):
        add_label(store, pair, "me", "a")
    store.ingest()
    good, refused = store.database.read_bytes(), set()
    for block in range(3 * 4096, len(good), 262_144):
        store.database.write_bytes(good[: block + 20] + bytes([good[block + 20] ^ 1]) + good[block + 21 :])
        try:
            PairStore.open(store.path)
        except IntegrityError:
            continue  # all of them end so
        for words in COMMANDS:
            if words[0] in refused:
                continue
            out = tmp_path / str(block)
            line = [str(out) if word == "OUT" else word for word in words]
            ended = RUNNER.invoke(app, ["store", *line, "--store", str(store.path)])
            assert isinstance(ended.exception, SystemExit | None), ended.exception
            if ended.exit_code:
                assert ended.exit_code == 5, ended.stderr
                (said,) = ended.stderr.splitlines()
                assert f"prefloop store rebuild --store {store.path}" in said
                refused.add(words[0])
    assert refused >= {"ls", "query", "export", "check"}
