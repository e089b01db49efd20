"""A scorer behind a URL scores as any other; a server that misbehaves is one line that names it and the cause."""

import json
import shutil
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import prefloop
import pytest
from content import add_image, add_pair, add_prompt, fill
from PIL import Image
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.remote import connection
from prefloop.relabel.remote.messages import TOKEN
from prefloop.relabel.scorers.registry import load_scorer
from prefloop.relabel.stage import relabel
from prefloop.store import IntegrityError, PairStore, PrefloopError, UsageError
from scripted_server import ABOUT, Reply, ScriptedServer
from typer.testing import CliRunner

RUNNER = CliRunner()
IMAGE = Image.new("RGB", (4, 4), (10, 20, 30))


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setattr(connection, "BACKOFF", 0.01)
    server = ScriptedServer()
    yield server
    server.close()


def test_a_scorer_behind_a_url_labels_and_its_key_is_its_name_and_revision(store: PairStore, far: ScriptedServer):
    far.about = ABOUT | {"temperature": 50}
    prompt = add_prompt(store, "one")
    dull, red = add_image(store, (10, 0, 0)), add_image(store, (110, 0, 0))
    add_pair(store, prompt, dull, red)
    store.ingest()
    ended = RUNNER.invoke(app, ["relabel", "--scorer", far.url, "--store", str(store.path), "--json"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["scored"] == {"far": 2}
    assert store.rows("select scorer, score from scores order by score") == [("far@1", 10.0), ("far@1", 110.0)]
    # 1 / (1 + exp(-100 / 50)) = 0.880797
    ((labeler, chosen, p),) = store.rows("select labeler, chosen, p_chosen from preferences")
    assert (labeler, chosen, p) == ("far", red, pytest.approx(0.880797, abs=1e-6))
    assert store.rows("select config->>'$.sources.url' from scorers") == [(far.url,)]
    assert far.bodies[0]["prompts"] == ["one", "one"]
    assert "tags" not in far.bodies[0]
    asked = len(far.bodies)
    assert relabel(RelabelConfig(scorers=(far.url,)), store)["new_labels"] == 0
    assert len(far.bodies) == asked  # nothing is scored twice


def test_check_and_the_python_api_take_a_url(store: PairStore, far: ScriptedServer):
    far.about = ABOUT | {"needs_prompt": True}
    ended = RUNNER.invoke(app, ["scorers", "check", far.url])
    assert (ended.exit_code, "FAIL  right " in ended.stdout, "far@1" in ended.stdout) == (5, True, True)
    fill(store, 1)
    assert prefloop.open_store(store.path).relabel(scorers=far.url)["scored"] == {"far": 2}


@pytest.mark.slow(reason="starts processes")
def test_an_evaluation_takes_a_url(store: PairStore, far: ScriptedServer, tiny_pipeline: Path, tmp_path: Path):
    far.about = ABOUT | {"eval_only": True}
    fill(store, 1)
    with pytest.raises(UsageError, match="far is reserved for evaluation"):
        relabel(RelabelConfig(scorers=(far.url,)), store)
    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    (other / "note.json").write_text("{}")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    result = prefloop.open_store(store.path).evaluate(
        models=str(other),
        baseline=str(tiny_pipeline),
        scorers=far.url,
        prompts=str(tmp_path / "prompts.txt"),
        images_per_prompt=1,
        num_inference_steps=1,
        n_resamples=100,
    )
    assert result["scorers"]["far"]["win_rate"] == 0.5  # both models generate the same images
    assert result["scorer_ids"] == [["far", "far@1"]]


def test_tags_are_sent_to_a_scorer_that_needs_them(store: PairStore, far: ScriptedServer):
    far.about = ABOUT | {"needs_tags": True}
    images = add_image(store, (10, 0, 0)), add_image(store, (110, 0, 0))
    add_pair(store, add_prompt(store, "one", question="Is it red?"), *images)
    store.ingest()
    relabel(RelabelConfig(scorers=(far.url,)), store)
    assert far.bodies[0]["tags"] == [{"question": "Is it red?"}] * 2


def test_many_images_are_sent_in_several_requests_and_keep_their_order(far: ScriptedServer):
    scorer = load_scorer(far.url)
    images = [Image.new("RGB", (2, 2), (value, 0, 0)) for value in range(150)]
    assert scorer.score(["x"] * 150, images).tolist() == list(range(150))
    assert [len(body["images"]) for body in far.bodies] == [64, 64, 22]


def test_null_and_nan_are_scores_that_are_not_finite(store: PairStore, far: ScriptedServer):
    fill(store, 1)
    far.reply = lambda body: (200, {}, b'{"scores": [null, NaN], "revision": "1"}')  # noqa: ARG005
    ended = RUNNER.invoke(app, ["relabel", "--scorer", far.url, "--store", str(store.path)])
    assert (ended.exit_code, "2 of 2 scores of far@1 are not finite" in ended.stderr) == (3, True)


def scores(value: Any) -> Reply:
    return 200, {}, {"scores": value, "revision": "1"}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (scores([1.0]), "gives 1 scores for 2 images"),
        (scores([[1.0], [2.0]]), r"gives the score [1.0], which is not a number"),
        (scores(["1.0", "2.0"]), "gives the score '1.0', which is not a number"),
        (scores([True, False]), "gives the score True, which is not a number"),
        (scores("12"), "answers without a list of scores: {'scores': '12'"),
        ((200, {}, [1.0, 2.0]), "answers without a list of scores: [1.0, 2.0]"),
        ((200, {}, b"<!DOCTYPE html><h1>Sign in</h1>"), "does not answer with JSON, but with an HTML page"),
        ((200, {}, b"\x1b[2J"), r"does not answer with JSON, but with b'\x1b[2J'"),
        ((200, {}, b"[" * 100_000), "does not answer with JSON"),
        ((200, {}, b" " * (2**20 + 1)), "answers with more than 1048576 bytes"),
        ((302, {"Location": "/other"}, b""), "answers 302"),
        (
            (307, {"Location": "http://localhost:1/score"}, b""),
            "redirects to 'http://localhost:1/score', another server",
        ),
        ((308, {"Location": "https://127.0.0.1/score"}, b""), "redirects to 'https://127.0.0.1/score', another server"),
        ((307, {"Location": "/score"}, b""), "redirects more than 3 times"),
        ((401, {}, {"error": "no"}), "refuses the token; set PREFLOOP_SCORER_TOKEN"),
        ((422, {}, {"error": "too\nblue"}), r"answers 422: 'too\nblue'"),
        ((500, {}, {"error": "no memory"}), "answers 500: 'no memory', 5 times"),
        (
            (429, {"Retry-After": "3600"}, b"later"),
            "answers 429: 'later' and asks to wait 3600 s; run the same command later",
        ),
        ((0, {}, b""), "does not answer: "),
    ],
)
def test_a_server_that_misbehaves_is_named_with_the_cause(
    store: PairStore, far: ScriptedServer, reply: Reply, message: str
):
    fill(store, 1)
    far.reply = lambda body: reply  # noqa: ARG005
    ended = RUNNER.invoke(app, ["relabel", "--scorer", far.url, "--store", str(store.path)])
    assert (ended.exit_code, ended.stdout) == (1, ""), ended.exception
    (line,) = [line for line in ended.stderr.splitlines() if line and "scoring by" not in line]
    assert line.startswith(f"prefloop: {far.url} ")
    assert message in line
    assert store.rows("select count(*) from scores") == [(0,)]


@pytest.mark.parametrize(
    ("about", "code", "message"),
    [
        ({"name": "far", "revision": "1"}, 1, "it has no needs_prompt"),
        (ABOUT | {"revision": 1}, 1, "it has revision 1"),
        (ABOUT | {"needs_prompt": "no"}, 1, "it has needs_prompt 'no'"),
        (ABOUT | {"temperature": 0}, 1, "it has temperature 0"),
        (ABOUT | {"temperature": True}, 1, "it has temperature True"),
        (["far"], 1, "does not describe a scorer: ['far']"),
        (ABOUT | {"name": "human:me"}, 2, "a scorer's name must be a printable text"),
        (ABOUT | {"name": "a\x1b[2J"}, 2, "a scorer's name must be a printable text"),
        (ABOUT | {"revision": "1\n2"}, 2, "the revision of far must be a printable text"),
    ],
)
def test_a_description_that_is_wrong_is_refused(far: ScriptedServer, about: Any, code: int, message: str):
    far.about = about
    ended = RUNNER.invoke(app, ["scorers", "check", far.url])
    assert (ended.exit_code, ended.stdout) == (code, "")
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("status", [0, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(far: ScriptedServer, status: int):
    scorer = load_scorer(far.url)
    far.first = [(status, {}, b"busy")] * 4
    assert scorer.score(["x"], [IMAGE]).tolist() == [10.0]
    assert len(far.bodies) == 1


@pytest.mark.parametrize("wait", ["1", "date"])
def test_retry_after_is_waited_for(far: ScriptedServer, monkeypatch: pytest.MonkeyPatch, wait: str):
    waited: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", waited.append)
    scorer = load_scorer(far.url)
    value = formatdate(time.time() + 100, usegmt=True) if wait == "date" else wait
    far.first = [(503, {"Retry-After": value}, b"")]
    scorer.score(["x"], [IMAGE])
    assert waited == [pytest.approx(100, abs=2) if wait == "date" else 1.0]


def test_a_redirect_within_the_server_is_followed_with_the_token(far: ScriptedServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TOKEN, "secret")
    far.first = [(302, {"Location": "/score/"}, b"")]
    scorer = load_scorer(far.url)
    far.first = [(307, {"Location": "/score/"}, b"")]
    assert scorer.score(["x"], [IMAGE]).tolist() == [10.0]
    assert far.paths == ["/score", "/score/", "/score", "/score/"]
    assert far.tokens == ["Bearer secret"] * 2


def test_the_token_is_neither_stored_nor_printed_and_no_other_password_is_sent(
    store: PairStore, far: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    load_scorer(far.url)
    monkeypatch.setenv(TOKEN, "s3cret-token")
    fill(store, 1)
    far.reply = lambda body: (400, {}, {"error": "no"})  # noqa: ARG005
    ended = RUNNER.invoke(app, ["relabel", "--scorer", far.url, "--store", str(store.path)])
    assert (ended.exit_code, far.tokens) == (1, [None, "Bearer s3cret-token"])
    assert "s3cret" not in ended.output
    assert not [path for path in store.path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


@pytest.mark.parametrize("said", [True, False])
def test_a_revision_that_changes_between_two_batches_is_refused(store: PairStore, far: ScriptedServer, said: bool):
    fill(store, 2)

    def reply(body: dict) -> Reply:
        new = "1" if len(far.bodies) == 1 else "2"
        far.about = ABOUT | {"revision": new}
        return 200, {}, {"scores": [1.0] * len(body["images"])} | ({"revision": new} if said else {})

    far.reply = reply
    with pytest.raises(IntegrityError, match=f"{far.url} was far@1 and is now 'far@2'"):
        relabel(RelabelConfig(scorers=(far.url,), batch_size=2), store)
    store.ingest()
    assert store.rows("select scorer, count(*) from scores group by all") == [("far@1", 2)]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://", "'http://' is not the URL of a scorer"),
        ("http://127.0.0.1:99999/score", "is not the URL of a scorer"),
        ("http://127.0.0.1:1/a b", "is not the URL of a scorer"),
        ("http://[::1/score", "is not the URL of a scorer"),
        ("http://127.0.0.1:1/score#x", "is not the URL of a scorer"),
        ("https://me:hidden@127.0.0.1/score", "the URL of a scorer at 127.0.0.1 contains a user name or a password"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused(store: PairStore, url: str, message: str):
    fill(store, 1)
    ended = RUNNER.invoke(app, ["relabel", "--scorer", url, "--store", str(store.path)])
    assert (ended.exit_code, message in ended.stderr, "hidden" in ended.output) == (2, True, False)
    assert len(ended.stderr.splitlines()) == 1


def test_a_server_that_is_not_there_is_named(far: ScriptedServer):
    far.close()
    with pytest.raises(
        PrefloopError,
        match=f"^{far.url} does not answer: Connection refused, 3 times; start the server, or give another address$",
    ):
        load_scorer(far.url)


def test_a_server_that_takes_too_long_is_not_asked_again(far: ScriptedServer, monkeypatch: pytest.MonkeyPatch):
    scorer = load_scorer(far.url)
    monkeypatch.setattr(connection, "TIMEOUT", 0.2)

    def slow(body: dict) -> Reply:
        time.sleep(0.5)
        return scores([1.0] * len(body["images"]))

    far.reply = slow
    with pytest.raises(PrefloopError, match=f"{far.url} has not answered within 0 s; use a smaller --batch-size"):
        scorer.score(["x"], [IMAGE])
    assert len(far.bodies) == 1


def test_a_scorer_behind_a_url_takes_neither_a_checkpoint_nor_a_dtype(far: ScriptedServer):
    for words in (["--checkpoint", f"{far.url}=x"], ["--dtype", "bfloat16"]):
        ended = RUNNER.invoke(app, ["relabel", "--scorer", far.url, *words, "--store", "gone"])
        assert ended.exit_code in (1, 2)
    with pytest.raises(UsageError, match="takes no checkpoint"):
        load_scorer(far.url, "x")
    with pytest.raises(UsageError, match="takes no dtype"):
        load_scorer(far.url, dtype="bfloat16")


def test_two_scorers_of_one_name_are_refused(store: PairStore, far: ScriptedServer):
    far.about = ABOUT | {"name": "redness", "revision": "2"}
    with pytest.raises(UsageError, match="are named redness; name one of them at a time"):
        relabel(RelabelConfig(scorers=(far.url, "little_scorers:Redness"), rule="majority"), store)


def test_scores_are_those_of_the_bytes_that_the_store_has(far: ScriptedServer):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    received: list[np.ndarray] = []

    def reply(body: dict) -> Reply:
        from prefloop.relabel.remote.messages import parse_request

        received.extend(map(np.asarray, parse_request(json.dumps(body).encode(), with_tags=False).images))
        return scores([0.1])

    far.reply = reply
    scorer = load_scorer(far.url)
    assert scorer.score(["x"], [Image.fromarray(noise)])[0] == np.float32(0.1)
    assert (received[0] == noise).all()
