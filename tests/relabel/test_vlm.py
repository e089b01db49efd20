"""A judge behind an endpoint: asked in both orders, retried, and never asked again about a pair it has answered."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from content import add_image, add_pair, add_prompt, fill
from PIL import Image
from prefloop.relabel import RelabelConfig
from prefloop.relabel.plan import plan
from prefloop.relabel.scorers.vlm import API_KEY, _parse_answer
from prefloop.relabel.stage import relabel
from prefloop.store import BadDataError, PairStore, PrefloopError, UsageError

Answer = Callable[[list[float], str], tuple[int, object]]


def redder(reds: list[float], text: str) -> tuple[int, object]:  # noqa: ARG001
    return 200, "Tie." if reds[0] == reds[1] else "First." if reds[0] > reds[1] else "Second."


class Endpoint:
    """A chat endpoint that answers by a function of the redness of the images it receives and of the text."""

    def __init__(self) -> None:
        self.answer: Answer = redder
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body)
                endpoint.keys.append(self.headers["Authorization"])
                text, *images = body["messages"][0]["content"]
                reds = [red(image["image_url"]["url"]) for image in images]
                status, answer = endpoint.answer(reds, text["text"])
                content = {"choices": [{"message": {"content": answer}}]} if isinstance(answer, str) else answer
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def config(self) -> RelabelConfig:
        return RelabelConfig(scorers=("vlm",), checkpoints={"vlm": f"{self.url}#little"}, batch_size=2)


def red(url: str) -> float:
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., 0].mean())


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def test_a_judge_decides_pairs_by_their_images_and_is_asked_in_both_orders(store: PairStore, endpoint: Endpoint):
    prompt = add_prompt(store, 'say "hello"')
    dim, bright, same = (add_image(store, colour) for colour in ((50, 0, 0), (150, 0, 0), (150, 9, 0)))
    add_pair(store, prompt, dim, bright)
    tie = add_pair(store, prompt, bright, same)
    store.ingest()
    summary = relabel(endpoint.config(), store)
    assert (summary["labeler"], summary["new_labels"], summary["labels"]["tie"]) == ("vlm", 2, 1)
    assert store.rows("select chosen, p_chosen from preferences") == [(bright, 1.0)]
    assert store.rows("select pair_id from current_labels where choice = 'tie'") == [(tie,)]
    assert len(endpoint.asked) == 4
    assert {body["model"] for body in endpoint.asked} == {"little"}
    assert 'say "hello"' in endpoint.asked[0]["messages"][0]["content"][0]["text"]


def test_a_judge_that_always_prefers_the_first_decides_nothing(store: PairStore, endpoint: Endpoint):
    fill(store, 3)
    endpoint.answer = lambda _reds, _text: (200, "first")
    assert relabel(endpoint.config(), store)["labels"] == {"a": 0, "b": 0, "tie": 3, "undecided": 0, "not_selected": 0}


def test_a_failed_run_keeps_its_answers_and_the_next_asks_only_about_the_other_pairs(
    store: PairStore, endpoint: Endpoint
):
    fill(store, 5)  # batches of 2, 2 and 1

    def fails_later(reds: list[float], text: str) -> tuple[int, object]:
        return redder(reds, text) if len(endpoint.asked) <= 4 else (400, {"error": "out of credit"})

    endpoint.answer = fails_later
    with pytest.raises(PrefloopError, match=r"answers 400: .*out of credit"):
        relabel(endpoint.config(), store)
    store.ingest()
    assert store.rows("select count(*) from labels") == [(2,)]
    (planned,) = plan(endpoint.config(), store)
    assert (planned.unscored, planned.batches) == (3, 2)
    endpoint.answer, endpoint.asked[:] = redder, []
    assert relabel(endpoint.config(), store)["new_labels"] == 3
    assert len(endpoint.asked) == 6
    assert relabel(endpoint.config(), store)["new_labels"] == 0
    assert len(endpoint.asked) == 6


def test_a_busy_endpoint_is_asked_again(store: PairStore, endpoint: Endpoint):
    fill(store, 1)
    refused: set[tuple[float, ...]] = set()

    def busy(reds: list[float], text: str) -> tuple[int, object]:
        if tuple(reds) in refused:
            return redder(reds, text)
        refused.add(tuple(reds))  # each order is refused once
        return 503, {}

    endpoint.answer = busy
    assert relabel(endpoint.config(), store)["new_labels"] == 1
    assert len(endpoint.asked) == 4


def test_an_unreadable_answer_makes_no_label_and_is_counted(store: PairStore, endpoint: Endpoint):
    fill(store, 1)
    endpoint.answer = lambda _reds, _text: (200, "The first is red, the second is not.")
    summary = relabel(replace(endpoint.config(), max_unreadable=1.0), store)
    assert (summary["labels"]["undecided"], summary["excluded"]) == (1, {"without an answer": 1})
    assert [_parse_answer(text) for text in ("First", "second!", " It is a TIE", "neither", "firstly")] == [
        1,
        0,
        0.5,
        None,
        None,
    ]


def test_too_many_pairs_without_an_answer_end_with_3_after_the_others_are_kept(store: PairStore, endpoint: Endpoint):
    fill(store, 4)
    endpoint.answer = lambda reds, text: (200, "neither") if "prompt 1" in text else redder(reds, text)
    with pytest.raises(BadDataError, match=r"vlm gave no readable answer for 1 of 4 pairs.*--max-unreadable 0.01"):
        relabel(endpoint.config(), store)
    assert store.rows("select count(*) from current_labels") == [(3,)]
    endpoint.answer = redder
    assert relabel(endpoint.config(), store)["new_labels"] == 1


def test_the_key_comes_from_the_environment_and_stays_out_of_the_store(
    store: PairStore, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(API_KEY, "secret")
    fill(store, 1)
    relabel(endpoint.config(), store)
    assert set(endpoint.keys) == {"Bearer secret"}
    kept = store.rows("select config from runs union all select config from labelers")
    assert "secret" not in str(kept)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}), f"refuses the key; set {API_KEY}"),
        ((200, {"choices": []}), "does not answer with a chat completion"),
        ((200, {"choices": [{"message": {"content": None}}]}), "does not answer with a chat completion"),
        ((200, ["first"]), "does not answer with a chat completion"),
    ],
)
def test_an_endpoint_that_does_not_work_is_named(store: PairStore, endpoint: Endpoint, answer: tuple, message: str):
    fill(store, 1)
    endpoint.answer = lambda _reds, _text: answer
    with pytest.raises(PrefloopError, match=message):
        relabel(endpoint.config(), store)
    assert store.rows("select count(*) from labels") == [(0,)]


def test_a_pairwise_judge_is_named_alone_with_an_endpoint(store: PairStore, endpoint: Endpoint):
    fill(store, 1)
    checkpoints = endpoint.config().checkpoints
    with pytest.raises(UsageError, match="name it alone"):
        relabel(
            RelabelConfig(scorers=("vlm", "little_scorers:Redness"), rule="majority", checkpoints=checkpoints), store
        )
    with pytest.raises(UsageError, match="name it alone"):
        relabel(RelabelConfig(scorers=("vlm",), tie_band=0.1, checkpoints=checkpoints), store)
    for wrong in ({}, {"vlm": "shapes"}, {"vlm": endpoint.url}, {"vlm": "#little"}):
        with pytest.raises(UsageError, match="vlm needs an endpoint and a model"):
            relabel(RelabelConfig(scorers=("vlm",), checkpoints=wrong), store)
