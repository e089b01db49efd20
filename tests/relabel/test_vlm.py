"""A judge behind an endpoint: asked in both orders, and never asked again about a pair or an image it has answered."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import Asked, ChatServer, Said, redder
from content import add_image, add_pair, add_prompt, command, environment, fill
from prefloop.cli import app
from prefloop.core.errors import Interrupted
from prefloop.relabel import RelabelConfig
from prefloop.relabel.judges import chat
from prefloop.relabel.judges.chat import API_KEY
from prefloop.relabel.plan import plan
from prefloop.relabel.scorers.registry import load_scorer, scorer_objects
from prefloop.relabel.stage import relabel
from prefloop.store import BadDataError, PairStore, PrefloopError, UsageError
from prefloop.store.check import check
from typer.testing import CliRunner

POINT = r"""
kind = "point"
prompt = "{image}How red is it, from 0 to 255? {prompt}"
[answer]
numbers = ['Score: (\d+)']
scale = [0, 255]
"""
NOTHING = {"a": 0, "b": 0, "tie": 0, "undecided": 0, "not_selected": 0}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setattr(chat, "FIRST_DELAY", 0.001)
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def point(tmp_path: Path) -> str:
    """A template of one's own that scores one image."""
    path = tmp_path / "redness.toml"
    path.write_text(POINT)
    return f"vlm:{path}"


def judge(server: ChatServer, scorer: str = "vlm", **settings: object) -> RelabelConfig:
    settings = {"batch_size": 2, "concurrency": 2, **settings}
    return RelabelConfig(scorers=(scorer,), checkpoints={scorer: f"{server.url}#little"}, **settings)  # type: ignore[arg-type]


def test_a_judge_decides_pairs_by_their_images_and_is_asked_in_both_orders(store: PairStore, server: ChatServer):
    prompt = add_prompt(store, 'say "hello" {prompt} {first}')
    dim, bright, same = (add_image(store, colour) for colour in ((50, 0, 0), (150, 0, 0), (150, 9, 0)))
    add_pair(store, prompt, dim, bright)
    tie = add_pair(store, prompt, bright, same)
    store.ingest()
    summary = relabel(judge(server), store)
    assert (summary["labeler"], summary["new_labels"], summary["labels"]["tie"]) == ("vlm", 2, 1)
    assert store.rows("select chosen, p_chosen from preferences") == [(bright, 1.0)]
    assert store.rows("select pair_id from current_labels where choice = 'tie'") == [(tie,)]
    assert sorted(asked.reds for asked in server.asked) == [[50, 150], [150, 50], [150, 150], [150, 150]]
    assert {asked.body["model"] for asked in server.asked} == {"little"}
    (text,) = server.asked[0].texts
    assert 'for this prompt:\n\nsay "hello" {prompt} {first}\n\nWhich one' in text


def test_a_judge_that_always_prefers_the_first_decides_nothing(store: PairStore, server: ChatServer):
    fill(store, 3)
    server.answer = lambda _: Said("first")
    assert relabel(judge(server), store)["labels"] == NOTHING | {"tie": 3}


def test_every_answer_is_kept_with_its_label(store: PairStore, server: ChatServer):
    fill(store, 1)
    server.answer = lambda asked: replace(redder(asked), usage={"prompt_tokens": 7, "completion_tokens": 2})
    relabel(judge(server), store)
    query = """
        select l.choice, a.value, a.answer, a.model, a.template, a.details, a.image_id = p.image_a
        from current_labels l
        join answers a on a.pair_id = l.pair_id and a.run_id = l.run_id
        join pairs p on p.pair_id = a.pair_id
        order by a.value
    """
    (choice, *second), (_, *first) = store.rows(query)
    details = '{"finish_reason":"stop","usage":{"completion_tokens":2,"prompt_tokens":7}}'
    redder_is_a = choice == "a"
    assert second == [0.0, "Second.", "little-1", "pair", details, not redder_is_a]
    assert first == [1.0, "First.", "little-1", "pair", details, redder_is_a]
    assert check(store) == []


@pytest.mark.slow(reason="starts processes")
def test_a_failed_run_keeps_its_answers_and_the_next_asks_only_about_the_other_pairs(
    store: PairStore, server: ChatServer
):
    fill(store, 5)
    server.answer = lambda asked: redder(asked) if len(server.asked) <= 4 else Said(status=402, body="out of credit")
    with pytest.raises(PrefloopError, match=r"answers 402: .*out of credit"):
        relabel(judge(server, concurrency=1), store)
    store.ingest()
    assert store.rows("select count(*) from labels") == [(2,)]
    (planned,) = plan(judge(server), store)
    assert (planned.unscored, planned.batches, planned.requests) == (3, 2, 6)
    server.answer, server.asked[:] = redder, []
    assert relabel(judge(server), store)["new_labels"] == 3
    assert len(server.asked) == 6
    assert relabel(judge(server), store)["new_labels"] == 0
    assert len(server.asked) == 6


def test_what_is_answered_before_an_error_is_kept_within_a_batch(store: PairStore, server: ChatServer):
    fill(store, 3)
    server.answer = lambda asked: redder(asked) if len(server.asked) <= 4 else Said(status=402)
    with pytest.raises(PrefloopError, match="answers 402"):
        relabel(judge(server, concurrency=1, batch_size=64), store)
    assert store.rows("select count(*) from current_labels") == [(2,)]


@pytest.mark.slow(reason="kills processes and goes on from there")
def test_a_killed_run_asks_only_about_the_rest(store: PairStore, server: ChatServer, tmp_path: Path):
    fill(store, 4)
    held, release = threading.Event(), threading.Event()

    def holds_the_fifth(asked: Asked) -> Said:
        if len(server.asked) == 5:
            held.set()
            release.wait(20)
        return redder(asked)

    server.answer = holds_the_fifth
    arguments = ["relabel", "--store", store.path, "--scorer", "vlm", "--checkpoint", f"vlm={server.url}#little"]
    words = command(*arguments, "--concurrency", 1, "--batch-size", 1)
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL) as process:
        assert held.wait(60)
        process.kill()
    release.set()
    store = PairStore.open(store.path)
    assert store.rows("select count(*) from current_labels") == [(2,)]
    server.answer, server.asked[:] = redder, []
    assert relabel(judge(server), store)["new_labels"] == 2
    assert len(server.asked) == 4
    assert check(store) == []


@pytest.mark.slow(reason="starts processes")
def test_a_signal_ends_asking_and_keeps_what_is_answered(store: PairStore, server: ChatServer):
    fill(store, 6)

    def interrupts(asked: Asked) -> Said:
        if len(server.asked) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # until the judge's thread is told: the third pair's other order is not asked for
        return redder(asked)

    server.answer = interrupts
    with pytest.raises(Interrupted, match=r"2 pairs judged by vlm are in .*the same command continues") as raised:
        relabel(judge(server, concurrency=1, batch_size=64), store)
    assert raised.value.exit_code == 130
    assert len(server.asked) == 5
    server.answer, server.asked[:] = redder, []
    assert relabel(judge(server), store)["new_labels"] == 4
    assert len(server.asked) == 8


def test_a_judge_that_is_used_again_has_its_budget_again(store: PairStore, server: ChatServer):
    fill(store, 2)
    scorer = load_scorer("vlm", f"{server.url}#little")
    for labeler in ("one", "two"):
        with scorer_objects([scorer]):
            config = RelabelConfig(scorers=("vlm",), labeler=labeler, max_requests=4)
            assert relabel(config, store)["usage"] == {"vlm": {"requests": 4}}


def test_a_budget_of_requests_keeps_what_is_done_and_the_same_command_continues(store: PairStore, server: ChatServer):
    fill(store, 5)
    arguments = ["relabel", "--store", str(store.path), "--scorer", "vlm", "--checkpoint", f"vlm={server.url}#little"]
    counts = []
    for _ in range(3):  # a budget of 5 is two pairs of two requests: a pair is not begun that cannot be finished
        result = CliRunner().invoke(app, [*arguments, "--max-requests", "5"])
        counts.append(store.rows("select count(*) from current_labels")[0][0])
        assert result.exit_code == (75 if counts[-1] < 5 else 0)
        stopped = "stopped at --max-requests 5: " in result.output and "the same command continues" in result.output
        assert stopped == (counts[-1] < 5)
    assert counts == [2, 4, 5]
    assert len(server.asked) == 10
    statuses = store.rows("select status from runs where kind = 'relabel' order by started")
    assert statuses == [("interrupted",), ("interrupted",), ("done",)]


def test_an_unreadable_answer_makes_no_label_and_is_counted_and_kept(store: PairStore, server: ChatServer):
    fill(store, 1)
    server.answer = lambda _: Said("The first is red, the second is not.")
    summary = relabel(judge(server, max_unreadable=1.0), store)
    assert (summary["labels"]["undecided"], summary["excluded"]) == (1, {"without an answer": 1})
    kept = store.rows("select answer, value from answers")
    assert kept == [("The first is red, the second is not.", None)] * 2


@pytest.mark.parametrize("content", ["", None, []])
def test_an_empty_answer_is_unreadable(store: PairStore, server: ChatServer, content: object):
    fill(store, 1)
    server.answer = lambda _: Said(content)
    with pytest.raises(BadDataError, match="no readable answer for 1 of 1 pairs"):
        relabel(judge(server), store)


def test_an_answer_in_parts_is_read(store: PairStore, server: ChatServer):
    fill(store, 1)
    server.answer = lambda asked: Said(
        [{"type": "text", "text": "The "}, {"type": "text", "text": redder(asked).content}]
    )
    assert relabel(judge(server), store)["new_labels"] == 1
    assert {answer for (answer,) in store.rows("select answer from answers")} == {"The First.", "The Second."}


def test_too_many_pairs_without_an_answer_end_with_3_after_the_others_are_kept(store: PairStore, server: ChatServer):
    fill(store, 4)
    server.answer = lambda asked: Said("neither") if "prompt 1" in asked.texts[0] else redder(asked)
    with pytest.raises(BadDataError, match=r"vlm gave no readable answer for 1 of 4 pairs.*--max-unreadable 0.01"):
        relabel(judge(server), store)
    assert store.rows("select count(*) from current_labels") == [(3,)]
    server.answer = redder
    assert relabel(judge(server), store)["new_labels"] == 1


@pytest.mark.slow(reason="starts processes")
def test_a_judge_that_is_never_read_is_not_asked_about_every_pair(store: PairStore, server: ChatServer):
    fill(store, 40)
    server.answer = lambda _: Said("I cannot say.")
    with pytest.raises(BadDataError, match="no readable answer"):
        relabel(judge(server, concurrency=1, batch_size=5), store)
    assert len(server.asked) <= 2 * 21  # 20 pairs, and the one under way


@pytest.mark.slow(reason="starts processes")
def test_a_pair_that_the_endpoint_refuses_is_left_out_but_one_that_refuses_all_ends_the_run(
    store: PairStore, server: ChatServer
):
    fill(store, 10)
    filtered = Said(status=400, body={"error": {"message": "content filter"}})
    server.answer = lambda asked: filtered if "prompt 3" in asked.texts[0] else redder(asked)
    summary = relabel(judge(server, max_unreadable=0.2), store)
    assert (summary["new_labels"], summary["excluded"]) == (9, {"without an answer": 1})
    assert store.rows("select count(*) from answers where answer like '%content filter%' and value is null") == [(2,)]
    server.asked[:], server.answer = [], lambda _: filtered
    with pytest.raises(PrefloopError, match=r"content filter.*it refuses every request"):
        relabel(judge(server, concurrency=1, labeler="again"), store)
    assert len(server.asked) == 8


def test_the_key_comes_from_the_environment_and_stays_out_of_store_and_errors(
    store: PairStore, server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(API_KEY, "secret-key")
    fill(store, 2)
    server.answer = lambda asked: replace(redder(asked), content=f"{redder(asked).content} Bearer secret-key")
    relabel(judge(server), store)
    assert {asked.key for asked in server.asked} == {"Bearer secret-key"}
    server.answer = lambda _: Said(status=402, body="no credit for secret-key")
    with pytest.raises(PrefloopError, match="no credit for …"):
        relabel(judge(server, labeler="again"), store)
    for part in (store.path / "journal").iterdir():
        assert b"secret-key" not in part.read_bytes()
    kept = store.rows("select concat(config, summary, error) from runs union all select answer from answers")
    assert "secret-key" not in str(kept)
    with pytest.raises(UsageError, match=f"give it in {API_KEY}"):
        relabel(RelabelConfig(scorers=("vlm",), checkpoints={"vlm": "http://me:secret@localhost/v1#m"}), store)


def test_a_pairwise_judge_is_named_alone_with_an_endpoint(store: PairStore, server: ChatServer):
    fill(store, 1)
    checkpoints = judge(server).checkpoints
    with pytest.raises(UsageError, match="name it alone"):
        relabel(
            RelabelConfig(scorers=("vlm", "little_scorers:Redness"), rule="majority", checkpoints=checkpoints), store
        )
    with pytest.raises(UsageError, match="name it alone"):
        relabel(RelabelConfig(scorers=("vlm",), tie_band=0.1, checkpoints=checkpoints), store)
    needed = "vlm needs an endpoint and a model: --checkpoint vlm=http://localhost:8000/v1#MODEL"
    with pytest.raises(UsageError, match=f"^{needed}$"):
        relabel(RelabelConfig(scorers=("vlm",)), store)
    for wrong in ({"vlm": "shapes"}, {"vlm": server.url}, {"vlm": "#little"}):
        with pytest.raises(UsageError, match=f"^{needed}; got '{wrong['vlm']}'$"):
            relabel(RelabelConfig(scorers=("vlm",), checkpoints=wrong), store)


def test_a_judge_of_single_images_scores_each_once(store: PairStore, server: ChatServer, point: str):
    fill(store, 2, images_per_prompt=3)  # redness 10, 76 and 143
    summary = relabel(judge(server, point), store)
    assert summary["scored"] == {"vlm:redness": 6}
    assert len(server.asked) == 6
    scores = sorted(score for (score,) in store.rows("select score from scores"))
    assert scores == pytest.approx([10 / 255] * 2 + [76 / 255] * 2 + [143 / 255] * 2)
    joined = """
        select count(*) from scores s
        join answers a on a.judge = s.scorer and a.image_id = s.image_id and a.prompt_id = s.prompt_id
        where a.value = s.score and a.pair_id is null
    """
    assert store.rows(joined) == [(6,)]
    assert store.rows("select count(*) from preferences where labeler = 'vlm:redness'") == [(4,)]
    relabel(judge(server, point, tie_band=0.9, labeler="cautious"), store)
    assert len(server.asked) == 6  # another rule asks nothing


def test_an_image_without_an_answer_gets_no_score_and_is_asked_about_again(
    store: PairStore, server: ChatServer, point: str
):
    fill(store, 2)  # redness 10 and 110
    server.answer = lambda asked: Said("no") if asked.reds == [10] and "prompt 1" in asked.texts[0] else redder(asked)
    with pytest.raises(BadDataError, match="vlm:redness gave no readable answer for 1 of 4 images"):
        relabel(judge(server, point), store)
    assert store.rows("select count(*), count(*) filter (where isnan(score)) from scores") == [(3, 0)]
    server.answer, server.asked[:] = redder, []
    relabel(judge(server, point), store)
    assert [asked.reds for asked in server.asked] == [[10]]


def test_tokens_and_cost_are_summed_and_printed(store: PairStore, server: ChatServer):
    fill(store, 3)
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "cost": 0.0015}
    server.answer = lambda asked: replace(redder(asked), usage=usage)
    arguments = ["relabel", "--store", str(store.path), "--scorer", "vlm", "--checkpoint", f"vlm={server.url}#little"]
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert "3 to judge, in 6 requests" in dry.output
    assert server.asked == []
    result = CliRunner().invoke(app, arguments)
    assert "vlm: 6 requests, 600 tokens read and 12 written, 0.0090 credits" in result.output
    ((summary,),) = store.rows("select summary from runs where kind = 'relabel'")
    expected = {"requests": 6, "prompt_tokens": 600, "completion_tokens": 12, "cost": pytest.approx(0.009)}
    assert json.loads(summary)["usage"] == {"vlm": expected}


def test_pairs_are_asked_about_at_once_but_no_more_than_allowed(store: PairStore, server: ChatServer):
    fill(store, 9)
    meet = threading.Barrier(3)

    def together(asked: Asked) -> Said:
        meet.wait(10)  # three requests must be under way at once, or this fails
        return redder(asked)

    server.answer = together
    assert relabel(judge(server, concurrency=3), store)["new_labels"] == 9
    assert server.most_open == 3


def test_limits_of_requests_are_refused_where_nothing_is_requested(store: PairStore):
    fill(store, 1)
    with pytest.raises(UsageError, match="--max-requests is for scorers behind an endpoint"):
        relabel(RelabelConfig(scorers=("little_scorers:Redness",), max_requests=5), store)


def test_soft_tifa_asks_the_questions_in_the_prompts_tags(store: PairStore, server: ChatServer):
    questions = [["How many foxes are in the image?", "two"], ["Are the foxes red?", "Yes"]]
    prompt = add_prompt(store, "two red foxes", vqa_list=json.dumps(questions))
    plain = add_prompt(store, "a fox")
    dim, bright = (add_image(store, colour) for colour in ((50, 0, 0), (150, 0, 0)))
    add_pair(store, prompt, dim, bright)
    add_pair(store, plain, dim, bright)
    store.ingest()

    def says(asked: Asked) -> Said:
        if asked.texts == ["How many foxes are in the image? Answer in one word."]:
            return Said("2", top={"2": 0.4, "Two": 0.24, "three": 0.3})
        assert asked.texts == ["Are the foxes red? Answer in one word."]
        return Said("Yes", top={"Yes": 0.8 if asked.reds == [150] else 0.0625, "No": 0.1, " yes": 0.1})

    server.answer = says
    config = judge(server, "vlm:soft-tifa")
    (planned,) = plan(config, store)
    assert planned.requests == 4
    summary = relabel(config, store)
    assert summary["excluded"] == {"images whose prompt has no questions": 2}
    # √(0.64 · 0.9), and √(0.64 · 0.1625)
    scores = store.rows("select score from scores order by score desc")
    assert [score for (score,) in scores] == pytest.approx([0.5760**0.5, 0.1040**0.5])
    assert store.rows("select chosen from preferences") == [(bright,)]
    n_asked = len(server.asked)
    assert relabel(config, store)["excluded"] == {"images whose prompt has no questions": 2}
    assert len(server.asked) == n_asked
    asked = store.rows("select distinct details ->> '$.question' as question from answers order by all")
    assert [question for (question,) in asked] == ["Are the foxes red?", "How many foxes are in the image?"]


def test_soft_tifa_without_questions_says_what_it_needs(store: PairStore, server: ChatServer):
    fill(store, 1)
    with pytest.raises(
        UsageError, match=r"no prompt .* has questions for vlm:soft-tifa; give each prompt a tag vqa_list"
    ):
        relabel(judge(server, "vlm:soft-tifa"), store)
    store.add_prompts([("wrong", {"vqa_list": "is it red?"})])
    dim, bright = (add_image(store, colour) for colour in ((51, 0, 0), (151, 0, 0)))
    add_pair(store, add_prompt(store, "wrong"), dim, bright)
    store.ingest()
    with pytest.raises(UsageError, match="the tag vqa_list of a prompt cannot be read: 'is it red"):
        relabel(judge(server, "vlm:soft-tifa"), store)
    assert server.asked == []
