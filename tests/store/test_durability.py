"""What is acknowledged is on disk: the bytes before the name, and the name before the call returns."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from content import add_image, add_label, add_prompt, fill, image_bytes
from prefloop.core.files import atomic_folder
from prefloop.store import PairStore, PrefloopError
from prefloop.store.importers.config import ImportConfig
from prefloop.store.importers.formats import open_source
from prefloop.store.importers.run import import_pairs
from prefloop.store.ingest import ingest_parts
from prefloop.store.maintenance.compact import compact
from prefloop.store.maintenance.merge import merge

Log = list[tuple[str, str]]
"""What was done, and to which path: fsync, replace (to its new name), unlink."""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Every fsync, rename and unlink, in their order. Nothing may be opened for writing under a final name."""
    done: Log = []
    fsync, replace, rename, unlink = os.fsync, os.replace, os.rename, Path.unlink

    def synced(descriptor: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def moved(move: Callable) -> Callable:
        def moving(source: Any, target: Any, **named: Any) -> None:
            done.extend([("from", str(source)), ("replace", str(target))])
            move(source, target, **named)

        return moving

    def removed(path: Path, **named: Any) -> None:
        done.append(("unlink", str(path)))
        unlink(path, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved(replace))
    monkeypatch.setattr(os, "rename", moved(rename))
    monkeypatch.setattr(Path, "unlink", removed)
    return done


def named(log: Log, path: Path) -> int:
    """Where in the log the path got its name; its bytes were on disk before, under another name."""
    at = log.index(("replace", str(path)))
    _, temporary = log[at - 1]
    assert log[at - 1][0] == "from"
    assert temporary != str(path)
    assert ("fsync", temporary) in log[:at], f"{path} got its name before its bytes were on disk"
    return at


def safe(log: Log, path: Path) -> int:
    """Where in the log the path is on disk under its name, whatever happens then."""
    at = named(log, path)
    return at + log[at:].index(("fsync", str(path.parent)))


def parts(store: PairStore, table: str) -> list[Path]:
    return sorted(store.journal.glob(f"*-{table}-*.parquet"))


def test_a_part_is_on_disk_before_its_name_and_its_name_before_the_call_returns(store: PairStore, log: Log):
    add_prompt(store, "one")
    (part,) = parts(store, "prompts")
    assert safe(log, part) == len(log) - 1
    assert [what for what, _ in log] == ["fsync", "from", "replace", "fsync"]


def test_images_and_their_folders_are_on_disk_before_the_part_that_refers_to_them(store: PairStore, log: Log):
    images = [store.write_image(image_bytes((value, 0, 0)), 8, 8) for value in range(4)]
    store.append("images", images)
    (part,) = parts(store, "images")
    for image in images:
        path = store.image_path(image["image_id"])
        assert safe(log, path) < named(log, part)
    # the folders' own names
    assert ("fsync", str(store.path / "images")) in log[: named(log, part)]
    # each folder once for the batch, not for each image
    folders = {
        path
        for what, path in log
        if what == "fsync" and path.startswith(str(store.path / "images")) and "." not in path
    }
    assert sum(path in folders for what, path in log if what == "fsync") == len(folders)


@pytest.mark.parametrize("by", ["import", "merge"])
def test_imported_images_are_on_disk_before_the_part_that_refers_to_them(
    store: PairStore, tmp_path: Path, log: Log, by: str
):
    if by == "merge":
        other = PairStore.create(tmp_path / "other")
        fill(other, n_prompts=2)
        log.clear()
        merge(store, other)
    else:
        for side, value in (("winner", 10), ("loser", 200)):
            (tmp_path / "pairs" / side).mkdir(parents=True)
            for number in range(3):
                (tmp_path / "pairs" / side / f"{number}.png").write_bytes(image_bytes((value, number, 0)))
        for number in range(3):
            (tmp_path / "pairs" / "winner" / f"{number}.txt").write_text(f"prompt {number}")
        config = ImportConfig(source=str(tmp_path / "pairs"))
        import_pairs(config, open_source(config), store)
    (part,) = parts(store, "images")
    stored = sorted((store.path / "images").rglob("*.png"))
    assert stored
    for path in stored:
        assert safe(log, path) < named(log, part)
    assert ("fsync", str(store.path / "images")) in log[: named(log, part)]


def test_a_new_database_is_on_disk_before_its_name(tmp_path: Path, log: Log):
    store = PairStore.create(tmp_path / "new")
    assert safe(log, store.database) == len(log) - 1
    log.clear()
    add_prompt(store, "one")
    store.rebuild()
    assert safe(log, store.database) == len(log) - 1
    # a database exists at every moment
    assert ("from", str(store.database)) not in log


def test_a_compacted_part_is_on_disk_before_the_old_ones_are_deleted(store: PairStore, log: Log):
    for number in range(3):
        add_prompt(store, f"prompt {number}")
    store.ingest()
    old = parts(store, "prompts")
    log.clear()
    compact(store)
    (part,) = parts(store, "prompts")
    gone = [log.index(("unlink", str(path))) for path in old]
    assert safe(log, part) < min(gone)
    assert log[max(gone) :].count(("fsync", str(store.journal))) == 1


def test_a_new_folder_is_on_disk_before_its_name(tmp_path: Path, log: Log):
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
    at = log.index(("replace", str(tmp_path / "out")))
    before = {Path(path).name for what, path in log[:at] if what == "fsync"}
    assert before >= {"file", "inner", folder.name}
    assert log[-1] == ("fsync", str(tmp_path))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_is_not_acknowledged(
    store: PairStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
):
    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, failing)
    for attempt in (
        lambda: add_prompt(store, "one"),
        lambda: add_image(store, (1, 2, 3)),
        lambda: PairStore.create(tmp_path / "new"),
    ):
        with pytest.raises(PrefloopError, match=r"cannot write .*: Input/output error"):
            attempt()
    assert [path for path in store.path.rglob("*") if path.suffix in (".parquet", ".png", ".tmp")] == []
    assert not (tmp_path / "new" / "pairs.duckdb").exists()


def test_rows_and_the_record_of_their_part_are_one_transaction(store: PairStore):
    pairs = fill(store, n_prompts=2)
    before = store.rows("select count(*) from parts")
    for pair in pairs:
        add_label(store, pair, "me", "a")

    class Dies:
        """A connection whose process ends when the note is about to be written."""

        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self.connection, name)

        def execute(self, query: str, *arguments: Any) -> Any:
            if query.startswith("insert into parts"):
                os._exit(9)
            return self.connection.execute(query, *arguments)

    found = {path.name: "labels" for path in parts(store, "labels")}
    if (child := os.fork()) == 0:
        with store.session(write=True) as connection:
            ingest_parts(Dies(connection), store.journal, found)  # type: ignore[arg-type]
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert store.rows("select count(*) from parts") == before
    assert store.rows("select count(*) from labels") == [(0,)]
    assert PairStore.open(store.path).rows("select count(*) from labels") == [(2,)]
