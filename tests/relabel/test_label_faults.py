"""The labelling page on a full disk and at a signal: it keeps running, says what is not saved, and ends at once."""

import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import content
import httpx2 as httpx
import pytest
from pages import LabelServer, Person, label_server
from prefloop.relabel.annotate import serve as serving
from prefloop.relabel.annotate.config import LabelConfig
from prefloop.relabel.annotate.label import label
from prefloop.store import PairStore
from prefloop.store.check import check

_QUICK = (
    "from prefloop.relabel.annotate import serve; serve.FLUSH_INTERVAL = 0.1; from prefloop.cli import main; main()"
)


class Running:
    """`prefloop label` in a process whose disk can be full."""

    def __init__(self, store: PairStore, folder: Path) -> None:
        words = ["label", "--port", "0", "--labeler", "ann", "--store", str(store.path)]
        with open(folder / "printed", "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _QUICK, *words], stdout=out, stderr=out, env=content.environment(), cwd=folder
            )
        wait_for(lambda: "token=" in (folder / "printed").read_text())
        link = re.findall(r"(http://\S+)/enter\?token=(\S+)", (folder / "printed").read_text())[0]
        self.client = httpx.Client(base_url=link[0], headers={"origin": link[0]}, timeout=10)
        assert self.client.post("/enter", data={"token": link[1]}).status_code == 303
        self.person = Person(self.client).reload()  # type: ignore[arg-type]  # it has the methods of a TestClient that are used

    def fill_disk(self, full: bool) -> None:
        """Keep files from growing, or let them grow again."""
        _, most = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (0 if full else most, most))

    def choose(self, side: str) -> int:
        sent = {"choice": side, "ticket": self.person.ticket}
        answer = self.client.post("/answer", data=sent, headers={"hx-request": "true"})
        self.person.text = answer.text
        return answer.status_code

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(8)


def wait_for(holds: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("still_full", [False, True])
def test_a_page_keeps_running_on_a_full_disk_and_ends_at_a_signal(store: PairStore, tmp_path: Path, still_full: bool):
    content.fill(store, n_prompts=4)
    page = Running(store, tmp_path)
    try:
        assert page.choose("left") == 200
        page.fill_disk(True)
        ticket = page.person.ticket
        assert page.choose("right") == 503
        assert page.person.message.startswith("Not saved yet: cannot write")
        assert (page.person.ticket, len(list(store.journal.glob("*-labels-*")))) == (ticket, 1)
        assert page.client.get("/").status_code == 200
        time.sleep(0.3)  # ingesting the first answer fails several times
        if not still_full:
            page.fill_disk(False)
            assert page.choose("right") == 200
            wait_for(lambda: store.rows("select count(*) from labels") == [(2,)])  # without any other command
        assert page.stop() == (1 if still_full else 0)
    finally:
        page.process.kill()
    opened = PairStore.open(store.path)
    assert opened.rows("select count(*) from labels") == [(1 if still_full else 2,)]
    assert check(opened) == []


def server_of_three(store: PairStore) -> LabelServer:
    content.fill(store, n_prompts=3)
    return label_server(store)


def test_a_flush_that_failed_is_repeated_by_the_next(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    server = server_of_three(store)
    server.enter().choose("left")

    def no_room(_: PairStore) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(PairStore, "ingest", no_room)
        with pytest.raises(OSError, match="No space"):
            server.page.flush()
    server.page.flush()
    assert store.rows("select count(*) from labels") == [(1,)]


def test_a_disk_error_is_shown_and_the_page_keeps_running(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    server = server_of_three(store)
    person = server.enter()

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PairStore, "append", broken)
    person.choose("left", status=503)
    assert person.message == "Not saved yet: [Errno 5] Input/output error. Retrying; leave this page open."
    plain = person.client.post("/answer", data={"choice": "left", "ticket": person.ticket}, headers={"origin": "http://127.0.0.1:8420"})  # fmt: skip
    assert plain.status_code == 503
    assert "Choose again later." in plain.text
    sent = {"token": server.links[-1][0], "name": "bob"}
    entered = server.browser().post("/enter", data=sent, headers={"origin": "http://127.0.0.1:8420"})
    assert entered.status_code == 503
    assert "Input/output error" in entered.text
    monkeypatch.undo()
    assert person.choose("left").message == "Saved: the first image."


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError(), RuntimeError("two\nlines")])
def test_any_error_while_flushing_is_one_line_and_retried(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving, "FLUSH_INTERVAL", 0.01)
    calls, ended = [], threading.Event()

    def flush() -> None:
        calls.append(1)
        if len(calls) == 3:
            ended.set()
        raise error

    serving._call_at_intervals(flush, ended)
    lines = capsys.readouterr().err.splitlines()
    assert len(calls) == len(lines) == 3
    assert all(line.startswith("prefloop: ") and line.endswith("; trying again in 0 s") for line in lines)


def test_a_signal_ends_the_page_while_another_process_holds_the_store(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
):
    """The label is in the journal; the next command ingests it."""
    content.fill(store, n_prompts=3)
    monkeypatch.setattr("prefloop.relabel.annotate.label.GRACE", 0.2)
    monkeypatch.setattr(serving, "GRACE", 0.2)
    monkeypatch.setattr(serving, "FLUSH_INTERVAL", 0.01)
    held = threading.Event()

    def say(link: str, _: str | None) -> None:
        def browse() -> None:
            root, token = re.findall(r"(http://\S+)/enter\?token=(\S+)", link)[0]
            with httpx.Client(base_url=root, headers={"origin": root}, timeout=10) as client:
                client.post("/enter", data={"token": token})
                person = Person(client).reload()  # type: ignore[arg-type]
                with store.session(write=True):
                    client.post("/answer", data={"choice": "left", "ticket": person.ticket})
                    signal.raise_signal(signal.SIGTERM)
                    held.wait(10)

        if not held.is_set() and not threading.active_count() > 3:
            threading.Thread(target=browse).start()

    start = time.monotonic()
    summary = label(LabelConfig(port=0, labelers=("ann",)), store, say)
    took = time.monotonic() - start
    held.set()
    assert took < 5
    assert summary["labels"] == {"human:ann": 1}
    wait_for(lambda: PairStore.open(store.path).rows("select count(*) from labels") == [(1,)])
