"""What people note beside a choice, the question they were asked, and links for their other devices."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from typing import NoReturn

import pytest
from content import add_image, add_pair, add_prompt, fill
from pages import ROOT, LabelServer, Person, label_server, labels
from prefloop.relabel.annotate.app import LabelPage, label_app
from prefloop.relabel.annotate.browse import browse_app
from prefloop.relabel.annotate.config import BrowseConfig, LabelConfig, ServeConfig
from prefloop.relabel.annotate.notes import MAX_COMMENT, Label, Notes
from prefloop.relabel.annotate.queue import current_labels, other_questions
from prefloop.relabel.annotate.security import InviteLinks, SecurityMiddleware
from prefloop.relabel.annotate.serve import base_url
from prefloop.store import PairStore, UsageError
from prefloop.store.check import check
from prefloop.store.queries.saved import saved_query
from prefloop.store.query import ask
from prefloop.store.runs import run
from prefloop.train.config import TrainConfig
from prefloop.train.pairs import select_pairs
from starlette.testclient import TestClient

NOTED = "select choice, both_bad, flag, comment from human_labels order by all"


def noted(store: PairStore) -> list[tuple]:
    store.ingest()
    return store.rows(NOTED)


@contextmanager
def asking(store: PairStore, **settings: object) -> Iterator[LabelServer]:
    """A page inside a run of its own, as the command has it."""
    config = LabelConfig(**settings)  # type: ignore[arg-type]  # names are checked by the dataclass
    links: list[tuple[str, str | None]] = []
    with run(store, "label", config) as this:
        page = LabelPage(config, store, this.run_id, lambda token, name: links.append((token, name)))
        page.invites.create()
        yield LabelServer(page, links)


# Both bad


def test_both_bad_is_a_tie_that_says_so_and_nothing_is_trained_on(store: PairStore):
    fill(store, n_prompts=3)
    person = label_server(store).enter().choose("bad")
    assert person.message == "Saved: both bad."
    person.choose("tie")
    assert noted(store) == [("tie", False, None, None), ("tie", True, None, None)]
    assert store.rows("select count(*) from preferences") == [(0,)]
    with pytest.raises(UsageError, match="no decided training pairs"):
        select_pairs(store, TrainConfig(labelers=("human:ann",), output_dir="unused"))
    # only what was noted takes space
    assert store.rows("select notes from labels order by notes nulls last") == [('{"both_bad":true}',), (None,)]
    assert check(store) == []


# Flags and comments


def test_a_flag_and_a_comment_are_saved_with_any_choice(store: PairStore):
    fill(store, n_prompts=3)
    person = label_server(store).enter()
    person.choose("skip", flag="broken image")
    assert person.message == "Saved: skipped, flagged: broken image."
    person.choose("bad", flag="unsafe", comment="  two\r\nlines, ünïcode 🦊 \x1b[31m\u202e ")
    assert person.message == "Saved: both bad, flagged: unsafe, with a comment."
    person.choose("tie", flag="", comment=" \n")
    mark = "\N{REPLACEMENT CHARACTER}"
    assert noted(store) == [
        ("skip", False, "broken image", None),
        ("tie", False, None, None),
        ("tie", True, "unsafe", f"two\nlines, ünïcode 🦊 {mark}[31m{mark}"),
    ]
    store.rebuild()
    assert len(noted(PairStore.open(store.path))) == 3
    (broken, unsafe) = ask(store, saved_query("notes").sql, parameters={"labeler": None}).to_pylist()
    assert (broken["flag"], broken["choice"], broken["comment"]) == ("broken image", "skip", None)
    assert (unsafe["flag"], unsafe["both_bad"], unsafe["labeler"]) == ("unsafe", True, "human:ann")
    assert ask(store, saved_query("notes").sql, parameters={"labeler": "human:eve"}).num_rows == 0


def test_a_decided_pair_that_was_flagged_can_be_left_out_of_training(store: PairStore):
    fill(store, n_prompts=30)
    person = label_server(store).enter()
    for number in range(30):
        person.choose("left", flag="unsafe" if number < 3 else "")
    store.ingest()
    assert store.rows("select count(*) from training_preferences") == [(30,)]
    where = "pair_id not in (select pair_id from human_labels where flag is not null)"
    pairs = select_pairs(store, TrainConfig(labelers=("human:ann",), output_dir="unused", where=where))
    assert len(pairs.train) + len(pairs.validation) == 27


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"flag": "nonsense"}, "a flag is one of broken image, unsafe, other"),
        ({"comment": "x" * (MAX_COMMENT + 1)}, f"a comment can have up to 1000 characters, got {MAX_COMMENT + 1}"),
    ],
)
def test_invalid_notes_are_refused_and_stay_on_the_page(store: PairStore, form: dict, message: str):
    fill(store, n_prompts=1)
    person = label_server(store).enter()
    ticket = person.ticket
    person.choose("left", status=400, **form)
    assert person.message.startswith(message)
    assert (person.ticket, labels(store)) == (ticket, [])
    assert comment_of(person) == form.get("comment", "")
    # the longest comment fits into a request even if every character takes twelve bytes of it
    person.choose("left", comment="🦊" * MAX_COMMENT)
    assert [len(comment) for *_, comment in noted(store)] == [MAX_COMMENT]


def comment_of(person: Person) -> str:
    return unescape(person.text.split("<textarea")[1].split(">", 1)[1].split("</textarea>")[0])


def flag_of(person: Person) -> str:
    """The flag that is chosen on the page."""
    (chosen,) = [line for line in person.text.split("<input") if " checked" in line]
    return chosen.split('value="')[1].split('"')[0]


def test_notes_of_an_answer_that_cannot_be_saved_stay_on_the_page(store: PairStore):
    fill(store, n_prompts=1)
    person = label_server(store).enter()
    store.journal.rename(store.path / "away")
    person.choose("left", status=503, comment='"<b>"', flag="other")
    (store.path / "away").rename(store.journal)
    assert (comment_of(person), flag_of(person)) == ('"<b>"', "other")
    assert "<b>&#34;" not in person.text


def test_an_undone_answer_shows_its_notes_again_and_they_no_longer_count(store: PairStore):
    fill(store, n_prompts=1)
    person = label_server(store).enter().choose("bad", flag="unsafe", comment="blood")
    person.choose("undo")
    assert (comment_of(person), flag_of(person)) == ("blood", "unsafe")
    assert noted(store) == []
    person.choose("tie")  # with the notes taken back
    assert noted(store) == [("tie", False, None, None)]


def test_a_repetition_keeps_what_was_noted_before_unless_it_is_noted_differently(store: PairStore):
    fill(store, n_prompts=40)
    person = label_server(store, repeats=0.5).enter()
    seen: set[frozenset] = set()
    repeated = 0
    while repeated < 2:
        both = frozenset(person.images)
        if both in seen:
            repeated += 1
            assert (comment_of(person), flag_of(person)) == ("", "")  # nothing tells that it is shown again
            person.choose("tie", comment="second thoughts" if repeated == 2 else "")
        else:
            seen.add(both)
            person.choose("bad", flag="unsafe", comment="first")
    rows = noted(store)
    assert rows.count(("tie", False, "unsafe", "first")) == 1
    assert rows.count(("tie", False, "unsafe", "second thoughts")) == 1
    assert rows.count(("tie", True, "unsafe", "first")) == len(rows) - 2 == len(seen) - 2
    # the next run of the page knows the notes, and undoing a repetition brings them back
    current = {pair: label for _, pair, _, label in current_labels(store, "human:ann")}
    assert set(current.values()) == {
        Label("tie", Notes(True, "unsafe", "first")),
        Label("tie", Notes(False, "unsafe", "first")),
        Label("tie", Notes(False, "unsafe", "second thoughts")),
    }
    person.choose("undo")
    assert noted(store).count(("tie", True, "unsafe", "first")) == len(seen) - 1


def test_notes_are_on_the_page_of_their_pair(store: PairStore):
    (pair,) = fill(store, n_prompts=1)
    label_server(store).enter().choose("bad", flag="other", comment="<i>odd</i>\nhands")
    store.ingest()
    tokens: list[str] = []
    invites: InviteLinks[str] = InviteLinks(lambda token, _: tokens.append(token))
    invites.create()
    client = TestClient(browse_app(BrowseConfig(), store, invites, 8420), base_url=ROOT)
    client.post("/enter", data={"token": tokens[0]}, headers={"origin": ROOT})
    text = client.get(f"/pair/{pair.hex}").text
    assert ">both bad</td>" in text
    (note,) = [line for line in text.split("<p ") if line.startswith('class="noted"')]
    assert "<b>human:ann</b> flags: other" in note
    assert "&lt;i&gt;odd&lt;/i&gt;\nhands" in note


def test_notes_of_a_later_prefloop_are_read():
    assert Notes.from_json('{"both_bad":true,"stars":5,"flag":null}') == Notes(both_bad=True)
    assert Notes.from_json(None) == Notes()
    assert Notes().to_json() is None


# The question


def test_labels_of_another_question_under_the_same_name_are_announced(store: PairStore):
    fill(store, n_prompts=5)
    assert other_questions(store, LabelConfig(question="Safer?")) == []
    for name, question, n in (("ann", "Safer?", 2), ("bob", "Nicer?", 1)):
        with asking(store, question=question) as server:
            person = server.enter(name)
            for _ in range(n):
                person.choose("left")
    store.ingest()
    (line,) = other_questions(store, LabelConfig(question="Nicer?"))
    assert line.startswith("human:ann has 2 labels that answer another question, 'Safer?'")
    assert "--labeler" in line
    assert other_questions(store, LabelConfig(question="Nicer?", labelers=("bob",))) == []
    assert len(other_questions(store, LabelConfig(question="Other?"))) == 2


def test_the_question_is_on_every_screen_and_stored_with_the_labels(store: PairStore):
    fill(store, n_prompts=4)
    for question, name in (("Which one is <safer>?", "ann"), ("Which image is better for this prompt?", "bob")):
        settings = {"question": question} if name == "ann" else {}  # the second is the default
        with asking(store, **settings) as server:
            form = server.browser().get(f"/enter?token={server.links[-1][0]}").text
            person = server.enter(name)
            for text in (form, person.text, person.choose("left").text, person.reload().text):
                assert question in unescape(text)
                assert "<safer>" not in text
    store.ingest()
    assert store.rows("select labeler, question from human_labels order by all") == [
        ("human:ann", "Which one is <safer>?"),
        ("human:bob", "Which image is better for this prompt?"),
    ]


@pytest.mark.parametrize("question", ["", "  ", "x" * 201, "two\nlines", "reversed \u202e"])
def test_a_question_that_cannot_be_shown_is_refused(question: str):
    with pytest.raises(UsageError, match="question must"):
        LabelConfig(question=question)


# Prompts


def test_lines_of_a_prompt_stay_lines(store: PairStore):
    prompt = add_prompt(store, "first line\nsecond\tline \x1b[31m\u202e قطة")
    add_pair(store, prompt, add_image(store, (1, 2, 3)), add_image(store, (3, 2, 1)))
    store.ingest()
    mark = "\N{REPLACEMENT CHARACTER}"
    assert label_server(store).enter().prompt == f"first line\nsecond\tline {mark}[31m{mark} قطة"


# Another device

LAN = "http://192.168.1.5:8420"


def device_token(person: Person, root: str) -> str:
    link = person.reload().text.split('id="device-link">')[1].split("<")[0]
    assert link.startswith(f"{root}/enter?token=")
    return link.split("token=")[1]


def test_a_page_that_others_reach_links_another_device_of_the_same_person(store: PairStore):
    fill(store, n_prompts=4)
    server = label_server(store, host="0.0.0.0")

    def browser(root: str) -> TestClient:
        return TestClient(label_app(server.page, 8420, LAN), base_url=root, follow_redirects=False)

    desktop = Person(browser(ROOT))
    sent = {"token": server.links[-1][0], "name": "ann"}
    assert desktop.client.post("/enter", data=sent, headers={"origin": ROOT}).status_code == 303
    announced = len(server.links)
    token = device_token(desktop, LAN)
    assert device_token(desktop, LAN) == token  # the same until it is used
    phone = Person(browser(LAN))
    for status in (303, 403):
        assert browser(LAN).post("/enter", data={"token": token}, headers={"origin": LAN}).status_code == status
    token = device_token(desktop, LAN)
    assert phone.client.post("/enter", data={"token": token}, headers={"origin": LAN}).status_code == 303
    assert "human:ann" in phone.reload().text
    assert set(phone.images) != set(desktop.images)
    # it is for this person alone: the terminal shows no new link
    assert len(server.links) == announced
    # a browser that came by another address links to that one
    other = "http://10.0.0.7:9000"
    elsewhere = Person(browser(other))
    sent = {"token": device_token(desktop, LAN)}
    assert elsewhere.client.post("/enter", data=sent, headers={"origin": other}).status_code == 303
    assert device_token(elsewhere, other)


def test_a_page_for_this_machine_alone_shows_no_link(store: PairStore):
    fill(store, n_prompts=1)
    assert "device-link" not in label_server(store).enter().text


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_the_address_of_a_link_is_one_that_the_server_accepts(host: str):
    config = ServeConfig(host=host)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        root = base_url(config, bound)
        assert root.startswith("http://")
        assert root.endswith(f":{bound.getsockname()[1]}")
    address = root.removeprefix("http://")
    # an address, not a name that a phone cannot look up and that the server would refuse
    assert SecurityMiddleware(_unused, InviteLinks(_unused), config, "c", _unused)._is_own(address)
    assert config.is_exposed == (host == "0.0.0.0")


def _unused(*_: object) -> NoReturn:
    raise AssertionError
