"""A labelling page in this process, and a client that reads its responses as a browser would."""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from uuid import UUID, uuid4

from prefloop.core.signals import StopSignal
from prefloop.relabel.annotate.app import LabelPage, label_app
from prefloop.relabel.annotate.config import LabelConfig, ServeConfig
from prefloop.relabel.annotate.serve import base_url, listen, serve
from prefloop.store import PairStore
from starlette.testclient import TestClient
from starlette.types import ASGIApp

ROOT = "http://127.0.0.1:8420"


@dataclass
class Person:
    """A browser that has been let in."""

    client: TestClient
    text: str = field(default="")

    def reload(self) -> "Person":
        self.text = self.client.get("/").text
        return self

    @property
    def ticket(self) -> str:
        return re.findall(r'name="ticket" value="(\w+)"', self.text)[0]

    @property
    def images(self) -> list[UUID]:
        """Left and right; empty at the end of the queue."""
        return [UUID(hex_digits) for hex_digits in re.findall(r'<img src="/image/(\w{32})"', self.text)]

    @property
    def message(self) -> str:
        return unescape(re.findall(r'class="message[^"]*">(.*?)</p>', self.text)[0])

    @property
    def prompt(self) -> str:
        return re.findall(r'<h1 id="prompt"[^>]*>(.*?)</h1>', self.text, re.S)[0]

    def choose(self, choice: str, status: int = 200, **form: str) -> "Person":
        sent = {"choice": choice, "ticket": self.ticket if self.images else "", "ms": "1200", **form}
        answer = self.client.post("/answer", data=sent, headers={"origin": ROOT, "hx-request": "true"})
        assert answer.status_code == status, answer.text
        self.text = answer.text
        return self


@dataclass
class LabelServer:
    """A page and the links it has announced."""

    page: LabelPage
    links: list[tuple[str, str | None]]

    def browser(self) -> TestClient:
        return TestClient(label_app(self.page, 8420), base_url=ROOT, follow_redirects=False)

    def enter(self, name: str = "ann") -> Person:
        client = self.browser()
        sent = {"token": self.links[-1][0], "name": name}
        answer = client.post("/enter", data=sent, headers={"origin": ROOT})
        assert answer.status_code == 303, answer.text
        return Person(client).reload()

    @contextmanager
    def serving(self) -> Iterator[Callable[[], str]]:
        """Serve the page to real browsers; yields a function that returns the latest link."""
        with serving(lambda port: label_app(self.page, port)) as root:
            yield lambda: f"{root}/enter?token={self.links[-1][0]}"


@contextmanager
def serving(app: Callable[[int], ASGIApp]) -> Iterator[str]:
    """Serve an app, made for a port, in a thread; yields its URL."""
    config, stop = ServeConfig(), StopSignal()
    bound = listen(config)
    thread = threading.Thread(target=serve, args=(app(bound.getsockname()[1]), bound, stop))
    thread.start()
    try:
        yield base_url(config, bound)
    finally:
        stop.number = signal.SIGTERM
        thread.join()
        bound.close()


def label_server(store: PairStore, **settings: object) -> LabelServer:
    links: list[tuple[str, str | None]] = []
    config = LabelConfig(**settings)  # type: ignore[arg-type]  # names are checked by the dataclass
    page = LabelPage(config, store, uuid4(), lambda token, name: links.append((token, name)))
    for name in config.labelers or (None,):
        page.invites.create(name)
    return LabelServer(page, links)


def labels(store: PairStore, labeler: str = "human:ann") -> list[tuple]:
    """(pair, revision, choice, shown_left) of a person, from the tables as they are with every part taken."""
    store.ingest()
    query = "select pair_id, revision, choice, shown_left from labels where labeler = ? order by pair_id, revision"
    return store.rows(query, [labeler])
