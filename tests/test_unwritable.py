"""Full disks, read-only media and bad paths end in one line and break nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from content import add_label, add_labeler, add_prompt, environment, fill, no_file_beyond
from prefloop.cli import app
from prefloop.store import PairStore, PrefloopError, UsageError
from prefloop.store.check import check
from typer.testing import CliRunner

RUNNER = CliRunner()


@pytest.mark.parametrize("kilobytes", [10, 150, 300])
def test_a_database_on_a_full_disk_recovers_by_itself(store: PairStore, kilobytes: int):
    pairs = fill(store, n_prompts=4)
    add_labeler(store, "me")
    store.ingest()
    for pair in pairs:
        add_label(store, pair, "me", "a")
    store.add_prompts((f"{number:06}" * 100, {}) for number in range(3000))
    with no_file_beyond(store.database.stat().st_size + 1024 * kilobytes):
        with pytest.raises(PrefloopError, match=r"cannot write .*pairs\.duckdb: File too large"):
            store.ingest()
        assert PairStore.open(store.path).rows("select count(*) from pairs") == [(4,)]  # reading still works
    again = PairStore.open(store.path)
    assert again.rows("select count(*) from labels") == [(4,)]
    assert again.rows("select count(*) from prompts") == [(3004,)]
    assert check(PairStore.open(store.path)) == []


def test_a_lock_works_on_a_full_disk(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with store.session(write=True):
        pass
    with store.stage_lock("relabel", "x"):
        pass


def test_a_journal_part_that_does_not_fit_is_named_with_its_size(store: PairStore, tmp_path: Path):
    with no_file_beyond(100):
        with pytest.raises(PrefloopError, match=r"cannot write .*journal.*parquet \(\d+ bytes\): File too large"):
            add_prompt(store, "one")
        for path in (tmp_path / "new", tmp_path / "other"):
            with pytest.raises(PrefloopError, match="cannot write"):
                PairStore.create(path)
    assert list(store.journal.iterdir()) == []


# Read in a separate mount namespace: nothing else keeps a test that runs as root from writing.
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
    (line,) = [line for line in ended.stderr.splitlines() if "not ingested" not in line]
    assert "Read-only file system" in line, line
print("read")
"""


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("lock", ["present", "missing"])
def test_a_store_on_read_only_media_can_be_read(store: PairStore, tmp_path: Path, lock: str):
    add_labeler(store, "me")
    for pair in fill(store):
        add_label(store, pair, "me", "a")
    store.ingest()
    add_prompt(store, "not ingested yet")
    if lock == "missing":
        (store.path / "store.lock").unlink(missing_ok=True)
    shell = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, store.path, sys.executable, "-c", _READ, store.path, tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        cwd=tmp_path,
    )
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip("mount namespaces are not allowed here")
    assert ended.stdout == "read\n", ended.stderr
    assert (store.path / "store.lock").exists() == (lock == "present")


COMMANDS = (
    ["store", "ls"],
    ["store", "check"],
    ["store", "rebuild"],
    ["store", "migrate"],
    ["store", "query", "from labels"],
    ["store", "import", "SOURCE"],
    ["store", "merge", "SOURCE"],
    ["generate", "--prompts", "shapes", "--limit", "1", "--dry-run"],
    ["relabel", "--scorer", "little_scorers:Redness"],
)


def run_on(words: list[str], path: str, source: str) -> tuple[int, list[str]]:
    """Exit code and error lines of a command on the store at that path."""
    line = [source if word == "SOURCE" else word for word in words]
    ended = RUNNER.invoke(app, [*line, "--store", path])
    assert isinstance(ended.exception, SystemExit | None), (words, ended.exception)
    return ended.exit_code, ended.stderr.splitlines()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_store_that_is_a_file_is_named(tmp_path: Path, words: list[str]):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "file").write_text("x")
    code, lines = run_on(words, str(tmp_path / "file"), str(tmp_path / "pairs"))
    assert code in (1, 2), lines
    assert len(lines) == 1, lines
    assert (tmp_path / "file").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pairs"]


@pytest.mark.parametrize("call", [PairStore.open, PairStore.create, lambda path: PairStore(path).rebuild()])
def test_a_path_with_a_nul_character_is_refused(call: Callable[[Path], object]):
    with pytest.raises(UsageError, match=r"'a\\x00b'.* NUL"):
        call(Path("a\0b"))


def test_a_store_without_read_permission_is_named(store: PairStore):
    fill(store, n_prompts=1)
    hidden = [store.path, store.journal, store.database]
    reader, writer = os.pipe()
    for path in hidden:
        mode = path.stat().st_mode
        path.chmod(0)
        if (child := os.fork()) == 0:
            try:
                if os.geteuid() == 0:  # root may read everything
                    store.path.parent.chmod(0o755)
                    os.setuid(65534)
                answers = [
                    run_on(words, str(store.path), str(store.path.parent))
                    for words in (["store", "ls"], ["store", "check"])
                ]
                os.write(writer, f"{path.name} {answers}\n".encode())
            except BaseException as error:
                os.write(writer, f"{path.name} {error!r}\n".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        path.chmod(mode)
    os.close(writer)
    with open(reader) as answers:
        lines = answers.read().splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.count("(1, ['prefloop: cannot ") == 2, line
        assert line.count("Permission denied") == 2, line
