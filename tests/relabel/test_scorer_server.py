"""`prefloop scorers serve`: the same scores to the bit, one job at a time, and a line of JSON for whatever is wrong."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from content import add_image, add_pair, add_prompt, command, environment, fill
from little_scorers import Redness, Tagged
from odd_scorers import Raises
from PIL import Image
from prefloop.cli import app
from prefloop.core.signals import StopSignal
from prefloop.relabel import RelabelConfig
from prefloop.relabel.annotate.config import ServeConfig
from prefloop.relabel.annotate.serve import base_url, listen, serve
from prefloop.relabel.remote import connection, messages, server
from prefloop.relabel.remote.messages import TOKEN, encode_image
from prefloop.relabel.remote.server import ScorerServer
from prefloop.relabel.scorers.registry import Scorer, load_scorer
from prefloop.relabel.stage import relabel
from prefloop.shapes.oracle_scorer import Oracle
from prefloop.store import PairStore, PrefloopError
from prefloop.store.images import png_bytes
from prefloop.store.pairstore import new_pair
from typer.testing import CliRunner

RUNNER = CliRunner()
RED = encode_image(Image.new("RGB", (4, 4), (200, 50, 0)))


@contextmanager
def served(scorer: Scorer, **settings: Any) -> Iterator[str]:
    """The URL of a scorer that is served."""
    stop, server, config = StopSignal(), ScorerServer(scorer, **settings), ServeConfig()
    with listen(config) as bound:
        thread = threading.Thread(target=serve, args=(server, bound, stop))
        thread.start()
        try:
            yield f"{base_url(config, bound)}/score"
        finally:
            stop.number = 2
            thread.join()


@pytest.fixture(scope="module")
def redness() -> Iterator[str]:
    with served(Redness(), batch_size=2) as url:
        yield url


def two_colors(store: PairStore, n_prompts: int) -> None:
    """Pairs of noise, for prompts of the built-in world."""
    noise = np.random.default_rng(0)
    rows, pairs = [], []
    for number in range(n_prompts):
        prompt = add_prompt(
            store, f"a {('red', 'blue', 'green')[number % 3]} circle left of a blue square {number // 3}"
        )
        both = []
        for _ in range(2):
            data = png_bytes(Image.fromarray(noise.integers(0, 256, (64, 64, 3), np.uint8)))
            both.append(store.write_image(data, 64, 64))
        rows += both
        pairs.append(new_pair(prompt, both[0]["image_id"], both[1]["image_id"], "generate"))
    store.append("images", rows)
    store.append("pairs", pairs)
    store.ingest()


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("name", ["pickscore", "hps", "aesthetics"])
def test_a_served_scorer_gives_the_same_scores_to_the_bit(store: PairStore, tmp_path: Path, name: str):
    two_colors(store, 6)
    other = PairStore(shutil.copytree(store.path, tmp_path / "other"))
    query = "select scorer, image_id, prompt_id, score from scores order by all"
    relabel(RelabelConfig(scorers=(name,), checkpoints={"": "shapes"}), store)
    with served(load_scorer(name, "shapes")) as url:
        summary = relabel(RelabelConfig(scorers=(url,)), other)
        assert summary["scored"] == {load_scorer(name, "shapes").name: 12}
        assert relabel(RelabelConfig(scorers=(url,)), store)["new_labels"] == 0  # it has the same key and temperature
    assert len(store.rows(query)) == 12
    assert other.rows(query) == store.rows(query)
    labels = "select pair_id, choice, p_a, margin from labels order by all"
    assert other.rows(labels) == store.rows(labels)


def test_the_description_is_the_scorers(redness: str):
    said = requests.get(redness, timeout=9).json()
    expected = {"name": "redness", "revision": "1", "needs_prompt": False, "temperature": 50.0}
    assert said == expected | {"needs_tags": False, "eval_only": False}
    with served(Oracle()) as url:
        assert requests.get(url, timeout=9).json()["eval_only"] is True


def test_several_clients_at_once_each_get_their_own_scores(redness: str):
    images = [[Image.new("RGB", (4, 4), (value + shift, 0, 0)) for value in range(5)] for shift in range(0, 200, 25)]
    clients = [load_scorer(redness) for _ in images]
    with ThreadPoolExecutor(len(images)) as pool:
        got = list(pool.map(lambda client, of_one: client.score(["x"] * 5, of_one).tolist(), clients, images))
    assert got == [[float(value + shift) for value in range(5)] for shift in range(0, 200, 25)]


class Exclusive(Redness):
    """Notes how many calls run at the same time, and how many images each has."""

    def __init__(self) -> None:
        self.running, self.most, self.sizes = 0, 0, list[int]()

    def score(self, prompts: Sequence[str], images: Sequence[Any]) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.sizes.append(len(images))
        time.sleep(0.02)
        self.running -= 1
        return super().score(prompts, images)


def test_one_batch_is_scored_at_a_time_and_none_is_larger_than_the_batch_size():
    scorer = Exclusive()
    body = {"prompts": ["x"] * 5, "images": [RED] * 5}
    with served(scorer, batch_size=2) as url, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: requests.post(url, json=body, timeout=9).json()["scores"], range(4)))
    assert answers == [[150.0] * 5] * 4
    assert (scorer.most, scorer.sizes) == (1, [2, 2, 1] * 4)


def test_more_requests_than_may_wait_are_answered_429_and_the_client_comes_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "MAX_WAITING", 1)
    monkeypatch.setattr(connection.time, "sleep", lambda seconds, sleep=time.sleep: sleep(seconds / 50))
    scorer, statuses = Exclusive(), []
    with served(scorer) as url:
        client = load_scorer(url)

        def post(_: int) -> None:
            body = {"prompts": ["x"], "images": [RED]}
            statuses.append(requests.post(url, json=body, timeout=9).status_code)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(post, range(8)))
            asked = [pool.submit(client.score, ["x"], [Image.new("RGB", (2, 2), (9, 0, 0))]) for _ in range(2)]
            assert [job.result().tolist() for job in asked] == [[9.0], [9.0]]
    assert set(statuses) == {200, 429}


def bomb() -> str:
    """A PNG of 10,000 x 10,000 pixels in a few kilobytes."""
    data = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(data, "PNG")
    assert len(data.getvalue()) < 20_000
    return base64.b64encode(data.getvalue()).decode()


BAD: list[tuple[Any, int, str]] = [
    (b"{", 400, "the body is not JSON"),
    (b"[" * 100_000, 400, "the body is not JSON"),
    ([], 400, "the body must be a JSON object with prompts and images"),
    ({"prompts": ["x"]}, 400, "images must be a list of texts"),
    ({"prompts": "x", "images": [RED]}, 400, "prompts must be a list of texts"),
    ({"prompts": [1], "images": [RED]}, 400, "prompts must be a list of texts"),
    ({"prompts": [], "images": []}, 400, "there are no images to score"),
    ({"prompts": ["x"], "images": [RED, RED]}, 400, "1 prompts for 2 images; there must be one for each"),
    ({"prompts": ["x", "y"], "images": [RED, "?"]}, 400, "images[1] is not base64"),
    ({"prompts": ["x"], "images": ["ä"]}, 400, "images[0] is not base64"),
    ({"prompts": ["x"], "images": [RED[:60]]}, 400, "images[0]: the image "),
    ({"prompts": ["x"], "images": ["aGVsbG8="]}, 400, "images[0]: the image is not a PNG, JPEG or WebP image"),
    ({"prompts": ["x"], "images": [bomb()]}, 413, "images[0]: the image has 10000 x 10000 pixels, more than 16777216"),
    ({"prompts": ["x"] * 257, "images": [RED] * 257}, 413, "257 images, more than 256 at once"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD)
def test_a_request_that_is_wrong_is_answered_by_a_line_of_json(redness: str, body: Any, status: int, message: str):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = requests.post(redness, data=data, headers={"Content-Type": "application/json"}, timeout=9)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith(message)
    assert "\n" not in answer.text


def test_the_size_of_a_body_and_of_all_images_is_bounded(redness: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "MAX_BODY", 1000)
    monkeypatch.setattr(messages, "MAX_TOTAL_PIXELS", 20)
    for body in (b"x" * 1001, (b"x" * 500 for _ in range(9))):  # with a length, and in chunks without one
        answer = requests.post(redness, data=body, headers={"Content-Type": "application/json"}, timeout=9)
        assert (answer.status_code, "more than 1000 bytes" in answer.json()["error"]) == (413, True)
    two = requests.post(redness, json={"prompts": ["x"] * 2, "images": [RED] * 2}, timeout=9)  # 16 pixels each
    assert (two.status_code, "more than 20 pixels in total" in two.json()["error"]) == (413, True)


def test_other_paths_methods_and_content_types_are_refused(redness: str):
    def answered(call: Callable[..., Any], url: str, **more: Any) -> tuple[int, str]:
        answer = call(url, timeout=9, **more)
        return answer.status_code, answer.json()["error"]

    assert answered(requests.get, redness + "s") == (404, "only /score is here")
    assert answered(requests.put, redness) == (405, "PUT is not possible here; GET or POST")
    # what a page of another site can send without asking first
    status, error = answered(requests.post, redness, data=b"{}", headers={"Content-Type": "text/plain"})
    assert (status, error) == (415, "the content type must be application/json")


def test_a_client_that_leaves_in_the_middle_of_its_request_disturbs_nothing(capsys: pytest.CaptureFixture[str]):
    with served(Redness()) as url:
        host, port = url.removeprefix("http://").removesuffix("/score").split(":")
        with socket.create_connection((host, int(port)), timeout=9) as client:
            head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            client.sendall(head.encode())
            time.sleep(0.2)
        time.sleep(0.2)
        assert requests.post(url, json={"prompts": ["x"], "images": [RED]}, timeout=9).json()["scores"] == [150.0]
    assert capsys.readouterr().err == ""


def test_a_token_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    with served(Redness(), token="s3cret") as url:
        for header in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
            for answer in (requests.get(url, headers=header, timeout=9), requests.post(url, headers=header, timeout=9)):
                assert answer.status_code == 401
                assert "s3cret" not in answer.text
        with pytest.raises(PrefloopError, match=f"{url} refuses the token; set {TOKEN}"):
            load_scorer(url)
        monkeypatch.setenv(TOKEN, "s3cret")
        assert load_scorer(url).score(["x"], [Image.new("RGB", (4, 4), (7, 0, 0))]).tolist() == [7.0]


def test_a_scorer_that_fails_is_named_in_the_answer_and_the_server_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "BACKOFF", 0.01)
    body = {"prompts": ["x"], "images": [RED]}
    with served(Raises()) as url:
        for _ in range(2):
            answer = requests.post(url, json=body, timeout=9)
            assert answer.status_code == 500
            assert answer.json()["error"].startswith("the scorer raises failed: KeyError: 'no such key")
        with pytest.raises(PrefloopError, match=r"answers 500: .the scorer raises failed: KeyError"):
            load_scorer(url).score(["x"], [Image.new("RGB", (4, 4))])
    with served(Oracle()) as url:  # a prompt that it cannot read is the client's mistake
        answer = requests.post(url, json=body, timeout=9)
        assert (answer.status_code, "reads only prompts of the built-in world" in answer.json()["error"]) == (400, True)


def test_tags_reach_a_served_scorer(store: PairStore):
    prompt = add_prompt(store, "one", factor="-2")
    add_pair(store, prompt, add_image(store, (10, 0, 0)), add_image(store, (20, 0, 0)))
    store.ingest()
    tagged: Any = Tagged()  # its score takes tags too
    with served(tagged) as url:
        relabel(RelabelConfig(scorers=(url,)), store)
        for tags, message in ((None, "this scorer needs tags"), ([], "0 tags for 1 images"), ([3], "needs tags")):
            body = {"prompts": ["x"], "images": [RED]} | ({} if tags is None else {"tags": tags})
            answer = requests.post(url, json=body, timeout=9)
            assert (answer.status_code, message in answer.json()["error"]) == (400, True)
    assert store.rows("select score from scores order by score") == [(-40.0,), (-20.0,)]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        (
            "odd_scorers:CannotBeMade",
            1,
            "'odd_scorers:CannotBeMade' cannot be created: FileNotFoundError: no file here (",
        ),
        ("odd_scorers:Raises", 1, "the scorer raises failed: KeyError: "),
        ("odd_scorers:Exits", 1, "the scorer exits failed: SystemExit: enough ("),
        ("odd_scorers:Strings", 1, "the scorer strings failed: TypeError: expected numbers"),
        ("odd_scorers:Columns", 1, "columns gave scores of shape (2, 1) for 2 images"),
        ("odd_scorers:Judges", 2, "judges compares two images and cannot score one; name another scorer"),
        ("builtins:dict", 2, "is not a scorer but a class without a method score"),
        ("nope", 2, "unknown scorer 'nope'"),
    ],
)
def test_a_scorer_that_cannot_be_served_is_named_in_one_line(name: str, code: int, message: str):
    ended = RUNNER.invoke(app, ["scorers", "serve", name, "--port", "0"])
    assert (ended.exit_code, ended.stdout) == (code, ""), ended.exception
    (line,) = ended.stderr.splitlines()
    assert message in line


@pytest.mark.slow(reason="starts processes")
def test_ctrl_c_ends_the_command_cleanly(store: PairStore, tmp_path: Path):
    fill(store, 1)
    words = command("scorers", "serve", "odd_scorers:Noise", "--port", "0", "--json")
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["scorer"] == "owner/noise@1"
        assert relabel(RelabelConfig(scorers=(said["url"],)), store)["scored"] == {"owner/noise": 2}
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    # what the scorer prints is not among the results
    assert (process.returncode, json.loads(out)) == (0, {"requests": 1, "images": 2})
    assert "Traceback" not in err
