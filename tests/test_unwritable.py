"""A disk that is full, media that may only be read, paths that lead nowhere: one line, and nothing breaks."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from content import add_label, add_labeler, add_prompt, environment, fill
from prefloop.store import PairStore, PrefloopError
from prefloop.store.check import check
from typer.testing import CliRunner

RUNNER = CliRunner()


def _no_file_beyond(n_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))


@pytest.mark.parametrize("kilobytes", [10, 150, 300])
def test_a_database_that_finds_no_room_recovers_by_itself(store: PairStore, kilobytes: int):
    pairs = fill(store, n_prompts=4)
    add_labeler(store, "me")
    store.absorb()
    for pair in pairs:
        add_label(store, pair, "me", "a")
    store.add_prompts((f"{number:06}" * 100, {}) for number in range(3000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    _no_file_beyond(store.database.stat().st_size + 1024 * kilobytes)
    try:
        with pytest.raises(PrefloopError, match=r"cannot write .*pairs\.duckdb: File too large; .* MB are free"):
            store.absorb()
        assert PairStore.open(store.path).rows("select count(*) from pairs") == [(4,)]  # what is there can be read
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = PairStore.open(store.path)
    assert again.rows("select count(*) from labels") == [(4,)]
    assert again.rows("select count(*) from prompts") == [(3004,)]
    assert check(again) == []


def test_a_lock_on_a_full_disk_is_held_without_a_note(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with store.session(write=True):
        pass
    with store.stage_lock("relabel", "x"):
        pass


def test_a_part_that_finds_no_room_is_told_in_one_line_with_its_size(store: PairStore, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    _no_file_beyond(100)
    try:
        with pytest.raises(PrefloopError, match=r"cannot write .*journal.*parquet \(\d+ bytes\): File too large"):
            add_prompt(store, "one")
        for path in (tmp_path / "new", tmp_path / "other"):
            with pytest.raises(PrefloopError, match="cannot write"):
                PairStore.create(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(store.journal.iterdir()) == []


# Read in a mount of its own, since nothing else keeps a test that runs as root from writing.
_READ = """
import sys
from prefloop.cli import app
from typer.testing import CliRunner
store, out = sys.argv[1:]
for words in (
    ["ls"], ["stats"], ["query", "select count(*) as n from labels"], ["agreement"], ["schema"], ["check"],
    ["export", out, "--format", "webdataset"],
):
    ended = CliRunner().invoke(app, ["store", *words, "--store", store])
    assert ended.exit_code == 0, (words, ended.output, ended.exception)
for words in (["store", "compact"], ["store", "rebuild"], ["relabel", "--scorer", "little_scorers:Redness"]):
    ended = CliRunner().invoke(app, [*words, "--store", store])
    assert ended.exit_code == 1, (words, ended.output, ended.exception)
    (line,) = [line for line in ended.stderr.splitlines() if "not in the tables" not in line]
    assert "Read-only file system" in line, line
print("read")
"""


@pytest.mark.parametrize("lock", ["there", "gone"])
def test_a_store_on_read_only_media_can_be_read(store: PairStore, tmp_path: Path, lock: str):
    add_labeler(store, "me")
    for pair in fill(store):
        add_label(store, pair, "me", "a")
    store.absorb()
    add_prompt(store, "not taken yet")
    if lock == "gone":
        (store.path / "store.lock").unlink(missing_ok=True)
    place = store.path
    shell = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, place, sys.executable, "-c", _READ, place, tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        cwd=tmp_path,
    )
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip("no mount of its own is allowed here")
    assert ended.stdout == "read\n", ended.stderr
    assert (store.path / "store.lock").exists() == (lock == "there")
