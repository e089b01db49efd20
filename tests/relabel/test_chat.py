"""A chat endpoint that misbehaves: what is tried again, what ends a run, and what the message says."""

import email.utils
import threading
import time
from collections.abc import Iterator

import pytest
from chat_server import Asked, ChatServer, Said
from prefloop.core.errors import PrefloopError, UsageError
from prefloop.relabel.config import RelabelConfig
from prefloop.relabel.judges import chat
from prefloop.relabel.judges.chat import API_KEY, RETRIES, BudgetSpent, ChatEndpoint, Stopped
from prefloop.relabel.judges.request_limits import RequestLimits

BODY = {"model": "little", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setattr(chat, "FIRST_DELAY", 0.001)
    server = ChatServer()
    server.answer = lambda _: Said("yes")
    yield server
    server.close()


@pytest.fixture
def endpoint(server: ChatServer) -> ChatEndpoint:
    return ChatEndpoint(server.url)


def first(*said: Said):
    """Says these one after the other, then yes."""
    left = list(said)
    return lambda _: left.pop(0) if left else Said("yes")


HTML = Said(body="<html>Welcome</html>")


@pytest.mark.parametrize(
    "said",
    [
        *(Said(status=status, body={"error": "busy"}) for status in (408, 409, 429, 500, 502, 503, 529)),
        Said(content="a long answer that does not arrive", cut=20),
        Said(body={"error": {"code": 502, "message": "the provider does not answer"}}),
    ],
    ids=lambda said: f"{said.status} {said.cut} {said.body}",
)
def test_what_may_pass_is_tried_again(server: ChatServer, endpoint: ChatEndpoint, said: Said):
    server.answer = first(said, said)
    assert endpoint.ask(BODY).text == "yes"
    assert len(server.asked) == endpoint.sent == 3


def test_a_server_that_never_recovers_is_named_after_the_last_retry(server: ChatServer, endpoint: ChatEndpoint):
    server.answer = lambda _: Said(status=503, body="no GPU is free")
    with pytest.raises(PrefloopError, match=f"answers 503: 'no GPU is free', {RETRIES + 1} times"):
        endpoint.ask(BODY)
    assert len(server.asked) == RETRIES + 1


def test_a_closed_port_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "FIRST_DELAY", 0.001)
    with pytest.raises(
        PrefloopError, match=r"http://127\.0\.0\.1:9/v1/chat/completions does not answer: ConnectionError"
    ):
        ChatEndpoint("http://127.0.0.1:9/v1").ask(BODY)


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("as_time", [False, True])
def test_the_wait_that_an_endpoint_asks_for_is_kept_by_all_threads(server: ChatServer, as_time: bool):
    endpoint = ChatEndpoint(server.url)
    until = email.utils.formatdate(time.time() + 2, usegmt=True)  # of whole seconds: at least one from now
    server.answer = first(Said(status=429, headers={"Retry-After": until if as_time else "0.4"}))
    start = time.monotonic()
    one = threading.Thread(target=endpoint.ask, args=[BODY])
    one.start()
    while not endpoint._free_at:
        assert time.monotonic() < start + 10
        time.sleep(0.01)
    endpoint.ask(BODY)  # another thread's request waits too
    assert time.monotonic() - start > (0.9 if as_time else 0.39)
    one.join()
    assert len(server.asked) == 3


def test_the_delay_doubles_and_half_of_it_is_random(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "FIRST_DELAY", 8.0)
    waits: list[float] = []
    endpoint = ChatEndpoint(server.url)
    monkeypatch.setattr(endpoint, "_sleep", waits.append)
    server.answer = lambda _: Said(status=500)
    with pytest.raises(PrefloopError):
        endpoint.ask(BODY)
    delays = [wait for wait in waits if wait]
    for delay, longest in zip(delays, (8, 16, 30, 30, 30), strict=True):  # no more than 30
        assert longest / 2 <= delay <= longest


def test_a_wait_of_zero_seconds_does_not_shorten_the_delay(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "FIRST_DELAY", 8.0)
    waits: list[float] = []
    endpoint = ChatEndpoint(server.url)
    monkeypatch.setattr(endpoint, "_sleep", waits.append)
    server.answer = first(Said(status=429, headers={"Retry-After": "0"}))
    endpoint.ask(BODY)
    assert [4 <= wait <= 8 for wait in waits if wait] == [True]


def test_a_wait_of_hours_is_not_kept(server: ChatServer, endpoint: ChatEndpoint):
    server.answer = lambda _: Said(status=429, headers={"Retry-After": "7200"}, body="quota")
    with pytest.raises(PrefloopError, match="answers 429: 'quota' and asks to wait 7200 s; run the same command"):
        endpoint.ask(BODY)
    assert len(server.asked) == 1


def test_a_slow_answer_times_out_and_is_asked_for_again(server: ChatServer, endpoint: ChatEndpoint):
    endpoint.limits = RequestLimits(request_timeout=0.2)
    release = threading.Event()

    def slow_at_first(_: Asked) -> Said:
        if len(server.asked) == 1:
            release.wait(10)
        return Said("yes")

    server.answer = slow_at_first
    assert endpoint.ask(BODY).text == "yes"
    release.set()
    assert len(server.asked) == 2


def test_an_endpoint_that_is_always_too_slow_names_the_option(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "RETRIES", 1)
    endpoint, release = ChatEndpoint(server.url), threading.Event()
    endpoint.limits = RequestLimits(request_timeout=0.05)
    server.answer = lambda _: Said("yes" if release.wait(10) else "no")
    with pytest.raises(PrefloopError, match=r"does not answer within 0.05 s \(--request-timeout\), 2 times"):
        endpoint.ask(BODY)
    release.set()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Said(status=401), f"refuses the key; set {API_KEY}"),
        (Said(status=403), f"refuses the key; set {API_KEY}"),
        (Said(status=402, body="no credit"), "answers 402: 'no credit'"),
        (Said(status=404, body="no such model"), "answers 404: 'no such model'"),
        (Said(status=307, headers={"Location": "http://elsewhere/"}), "redirects to 'http://elsewhere/'"),
        (HTML, "does not answer with a chat completion: '<html>Welcome"),
        (Said(body={"choices": []}), "does not answer with a chat completion"),
        (Said(body=["yes"]), "does not answer with a chat completion"),
        (Said(body={"choices": [{"message": None}]}), "does not answer with a chat completion"),
        (Said(content={"text": "yes"}), "does not answer with a chat completion"),
        (Said(content=[{"type": "text"}]), "does not answer with a chat completion"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(server: ChatServer, endpoint: ChatEndpoint, said: Said, message: str):
    server.answer = lambda _: said
    with pytest.raises(PrefloopError, match=message):
        endpoint.ask(BODY)
    assert len(server.asked) == 1


def test_the_key_is_sent_even_if_netrc_has_a_password(
    server: ChatServer, endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    endpoint.ask(BODY)
    assert server.asked[0].key is None
    monkeypatch.setenv(API_KEY, "secret")
    ChatEndpoint(server.url).ask(BODY)
    assert server.asked[1].key == "Bearer secret"


def test_retries_are_taken_from_the_budget(server: ChatServer, endpoint: ChatEndpoint):
    endpoint.limits = RequestLimits(max_requests=3)
    server.answer = lambda _: Said(status=503)
    endpoint.reserve(1)
    with pytest.raises(BudgetSpent, match="stopped at --max-requests 3"):
        endpoint.ask(BODY)
    assert len(server.asked) == 3


def test_requests_are_sent_no_faster_than_the_rate(endpoint: ChatEndpoint):
    endpoint.limits = RequestLimits(requests_per_minute=600)  # one in 0.1 s
    start = time.monotonic()
    for _ in range(4):
        endpoint.ask(BODY)
    assert time.monotonic() - start >= 0.3


def test_a_thread_that_waits_is_woken_to_stop(server: ChatServer, endpoint: ChatEndpoint):
    server.answer = lambda _: Said(status=429, headers={"Retry-After": "100"})
    ended: list[type] = []

    def ask() -> None:
        try:
            endpoint.ask(BODY)
        except Stopped:
            ended.append(Stopped)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.asked:
        time.sleep(0.01)
    endpoint.stop()
    thread.join(5)
    assert ended == [Stopped]


@pytest.mark.parametrize(
    "limits",
    [{"concurrency": 0}, {"max_requests": 0}, {"requests_per_minute": 0.0}, {"request_timeout": float("nan")}],
)
def test_limits_that_make_no_sense_are_refused(limits: dict):
    (name,) = limits
    with pytest.raises(UsageError, match=f"{name.replace('_', '-')} must be positive"):
        RelabelConfig(**limits)
