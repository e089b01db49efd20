"""Another program, such as DuckDB's shell, has the database open: commands wait for it and lose nothing."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from content import TESTS, environment, fill
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.stage import relabel
from prefloop.store import BusyError, PairStore
from typer.testing import CliRunner

_HOLDER = """
import sys, time, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(store: PairStore) -> Iterator[Callable[[float], None]]:
    """Has another process open the store's database for some seconds."""
    processes = []

    def start(seconds: float) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(store.database), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=TESTS,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        processes.append(process)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow(reason="waits for another process")
def test_a_program_that_has_the_database_open_is_waited_for(store: PairStore, hold: Callable[[float], None]):
    fill(store, n_prompts=1)
    store.add_prompts([("new", {})])
    hold(0.8)
    start = time.monotonic()
    assert PairStore.open(store.path).rows("select count(*) from prompts") == [(2,)]
    hold(0.8)
    ended = CliRunner().invoke(app, ["store", "query", "from prompts", "--store", str(store.path)])
    assert ended.exit_code == 0
    assert time.monotonic() - start < 10


def test_a_rebuild_waits_for_it_too_and_does_not_mistake_its_database_for_a_damaged_one(
    store: PairStore, hold: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
):
    fill(store, n_prompts=1)
    monkeypatch.setattr("prefloop.store.pairstore.LOCK_WAIT", 0.1)
    hold(30)
    with pytest.raises(BusyError, match="is held by process"):
        store.rebuild()


@pytest.mark.slow(reason="waits for another process")
def test_labels_that_cannot_be_ingested_stay_in_the_journal(
    store: PairStore, hold: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fill(store, n_prompts=4)
    monkeypatch.setattr("prefloop.store.pairstore.LOCK_WAIT", 0.2)

    class Held(PairStore):
        """Somebody opens the database when the labels are in the journal."""

        def append(self, table: str, rows: object) -> None:
            super().append(table, rows)  # type: ignore[arg-type]
            if table == "labels":
                hold(2)

    summary = relabel(RelabelConfig(scorers=("little_scorers:Redness",)), Held(store.path))
    assert summary["new_labels"] == 4
    assert "the next command ingests them" in capsys.readouterr().err
    monkeypatch.undo()
    again = PairStore.open(store.path)
    assert again.rows("select count(*) from labels") == [(4,)]
    assert again.rows("select status from runs") == [("done",)]
