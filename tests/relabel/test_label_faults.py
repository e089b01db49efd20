"""The labelling page on a full disk, and before a signal: it goes on, says what is not saved, and ends when it is told to."""

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
from pages import Office, Person, office
from prefloop.relabel.annotate import serve as serving
from prefloop.relabel.annotate.config import LabelConfig
from prefloop.relabel.annotate.label import label
from prefloop.store import PairStore
from prefloop.store.check import check

_QUICK = "from prefloop.relabel.annotate import serve; serve.EVERY = 0.1; from prefloop.cli import main; main()"


class Running:
    """`prefloop label` in a process whose files can be kept from growing, as on a full disk."""

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
        self.person = Person(self.client).look()  # type: ignore[arg-type]  # it has what a TestClient has

    def full(self, full: bool) -> None:
        _, most = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (0 if full else most, most))

    def choose(self, side: str) -> int:
        sent = {"choice": side, "ticket": self.person.ticket}
        answer = self.client.post("/answer", data=sent, headers={"hx-request": "true"})
        self.person.text = answer.text
        return answer.status_code

    def ends(self) -> int:
        self.process.terminate()
        return self.process.wait(8)


def wait_for(holds: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("still_full", [False, True])
def test_a_page_goes_on_after_a_full_disk_and_ends_by_a_signal(store: PairStore, tmp_path: Path, still_full: bool):
    content.fill(store, n_prompts=4)
    page = Running(store, tmp_path)
    try:
        assert page.choose("left") == 200
        page.full(True)
        ticket = page.person.ticket
        assert page.choose("right") == 503
        assert page.person.told.startswith("Not saved yet: cannot write")
        assert (page.person.ticket, len(list(store.journal.glob("*-labels-*")))) == (ticket, 1)
        assert page.client.get("/").status_code == 200
        time.sleep(0.5)  # the first answer finds no room in the tables, several times
        if not still_full:
            page.full(False)
            assert page.choose("right") == 200
            wait_for(lambda: store.rows("select count(*) from labels") == [(2,)])  # without any other command
        assert page.ends() == (1 if still_full else 0)
    finally:
        page.process.kill()
    opened = PairStore.open(store.path)
    assert opened.rows("select count(*) from labels") == [(1 if still_full else 2,)]
    assert check(opened) == []


def of_three(store: PairStore) -> Office:
    content.fill(store, n_prompts=3)
    return office(store)


def test_what_could_not_be_taken_in_is_taken_in_the_next_time(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    place = of_three(store)
    place.enter().choose("left")

    def no_room(_: PairStore) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(PairStore, "absorb", no_room)
        with pytest.raises(OSError, match="No space"):
            place.page.settle()
    place.page.settle()
    assert store.rows("select count(*) from labels") == [(1,)]


def test_an_error_of_the_disk_is_said_and_is_no_crash(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    place = of_three(store)
    person = place.enter()

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PairStore, "append", broken)
    person.choose("left", status=503)
    assert (
        person.told == "Not saved yet: [Errno 5] Input/output error. It is sent again by itself; leave this page open."
    )
    plain = person.client.post("/answer", data={"choice": "left", "ticket": person.ticket}, headers={"origin": "http://127.0.0.1:8420"})  # fmt: skip
    assert plain.status_code == 503
    assert "Choose again later." in plain.text
    sent = {"token": place.links[-1][0], "name": "bob"}
    entered = place.browser().post("/enter", data=sent, headers={"origin": "http://127.0.0.1:8420"})
    assert entered.status_code == 503
    assert "Input/output error" in entered.text
    monkeypatch.undo()
    assert person.choose("left").told == "Saved: the first picture."


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError(), RuntimeError("two\nlines")])
def test_whatever_goes_wrong_while_tidying_is_one_line_and_tried_again(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving, "EVERY", 0.01)
    calls, ended = [], threading.Event()

    def tidy() -> None:
        calls.append(1)
        if len(calls) == 3:
            ended.set()
        raise error

    serving._now_and_then(tidy, ended)
    lines = capsys.readouterr().err.splitlines()
    assert len(calls) == len(lines) == 3
    assert all(line.startswith("prefloop: ") and line.endswith("; tried again in 0 s") for line in lines)


def test_a_signal_is_obeyed_while_another_process_holds_the_store(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    """The label is in the journal; the next command takes it in."""
    content.fill(store, n_prompts=3)
    monkeypatch.setattr("prefloop.relabel.annotate.label.LAST", 0.2)
    monkeypatch.setattr(serving, "LAST", 0.2)
    monkeypatch.setattr(serving, "EVERY", 0.01)
    held = threading.Event()

    def say(link: str, _: str | None) -> None:
        def browse() -> None:
            root, token = re.findall(r"(http://\S+)/enter\?token=(\S+)", link)[0]
            with httpx.Client(base_url=root, headers={"origin": root}, timeout=10) as client:
                client.post("/enter", data={"token": token})
                person = Person(client).look()  # type: ignore[arg-type]
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
