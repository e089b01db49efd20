"""The labelling page: queues, stored labels, and who gets which pair."""

import os
import shutil
import socket
import time
from html import unescape
from itertools import combinations
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from content import add_image, add_label, add_labeler, add_pair, add_prompt, add_scores, fill
from pages import label_server, labels
from prefloop.cli import app
from prefloop.relabel.annotate import assignment
from prefloop.relabel.annotate.config import LabelConfig
from prefloop.relabel.annotate.queue import pairs_to_label
from prefloop.store import PairStore, UsageError, compaction
from prefloop.store.agreement import agreement
from prefloop.store.check import check
from prefloop.store.maintenance.compact import compact
from prefloop.store.pairstore import new_pair
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    made = PairStore.create(tmp_path_factory.mktemp("thirty") / "store")
    fill(made, n_prompts=30)
    compact(made)
    return made


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> PairStore:
    """Empty, or with 30 prompts and a pair of each for a test that uses `pairs`."""
    if "pairs" not in request.fixturenames:
        return PairStore.create(tmp_path / "store")
    shutil.copytree(request.getfixturevalue("thirty").path, tmp_path / "store")
    return PairStore.open(tmp_path / "store")


@pytest.fixture
def pairs(store: PairStore) -> list:
    return [pair for (pair,) in store.rows("select pair_id from pairs order by pair_id")]


with_thirty_pairs = pytest.mark.usefixtures("pairs")


def pair_images(store: PairStore) -> dict:
    return {pair: (a, b) for pair, a, b in store.rows("select pair_id, image_a, image_b from pairs")}


def test_an_answer_is_on_disk_before_it_is_acknowledged(store: PairStore, pairs: list):
    person = label_server(store).enter()
    before = set(store.journal.glob("*-labels-*"))
    person.choose("left")
    (part,) = set(store.journal.glob("*-labels-*")) - before
    (row,) = pq.read_table(part).to_pylist()
    assert (row["labeler"], row["revision"], row["response_ms"], row["pair_id"] in pairs) == (
        "human:ann",
        0,
        1200,
        True,
    )
    assert person.message == "Saved: the first image."


@with_thirty_pairs
def test_the_stored_choice_is_the_image_that_was_on_the_chosen_side(store: PairStore):
    person = label_server(store).enter()
    expected, images = {}, pair_images(store)
    for number in range(24):
        side = ("left", "right")[number % 2]
        chosen = person.images[number % 2]
        (pair,) = [pair for pair, both in images.items() if set(both) == set(person.images)]
        left = "ab"[images[pair].index(person.images[0])]
        expected[pair] = (chosen, left)
        person.choose(side)
    stored = {pair: (images[pair]["ab".index(choice)], left) for pair, _, choice, left in labels(store)}
    assert stored == expected
    # 24 fair coins: all on one side once in 8 million
    assert {left for _, left in expected.values()} == {"a", "b"}
    assert dict(store.rows("select pair_id, chosen from preferences")) == {
        p: chosen for p, (chosen, _) in expected.items()
    }


@with_thirty_pairs
def test_ties_and_skips_are_stored_and_are_not_preferences(store: PairStore):
    person = label_server(store).enter()
    person.choose("tie").choose("skip").choose("right")
    assert sorted(choice for _, _, choice, _ in labels(store))[-2:] == ["skip", "tie"]
    assert store.rows("select count(*) from preferences") == [(1,)]


@with_thirty_pairs
def test_an_undone_answer_does_not_count_until_the_pair_is_decided_again(store: PairStore):
    person = label_server(store).enter()
    first = set(person.images)
    person.choose("left").choose("undo")
    assert (person.message, set(person.images)) == ("Undone: choose again.", first)
    (answer, undone) = labels(store)
    assert (answer[1], undone[1:]) == (0, (1, "skip", None))
    assert store.rows("select count(*) from preferences") == [(0,)]
    person.choose("tie")
    assert [(revision, choice) for _, revision, choice, _ in labels(store)] == [(0, answer[2]), (1, "skip"), (2, "tie")]
    assert store.rows("select choice from current_labels") == [("tie",)]
    assert check(store) == []


@with_thirty_pairs
def test_undo_goes_back_step_by_step_to_the_first_answer(store: PairStore):
    person = label_server(store).enter()
    seen = [set(person.images)]
    for _ in range(3):
        seen.append(set(person.choose("left").images))
    for back in (2, 1, 0):
        assert set(person.choose("undo").images) == seen[back]
    assert person.choose("undo").message == "There is nothing to undo."
    assert store.rows("select count(*) from preferences") == [(0,)]


def test_undoing_a_repetition_restores_the_first_answer(store: PairStore):
    fill(store, n_prompts=12)
    person = label_server(store, repeats=0.5).enter()
    seen: set[frozenset] = set()
    while (both := frozenset(person.images)) not in seen:
        seen.add(both)
        person.choose("left")
    person.choose("left")
    (pair,) = [pair for pair, revision, _, _ in labels(store) if revision == 1]
    (first, second) = [choice for of, _, choice, _ in labels(store) if of == pair]
    person.choose("undo")
    assert [(revision, choice) for of, revision, choice, _ in labels(store) if of == pair] == [
        (0, first),
        (1, second),
        (2, first),
    ]
    assert labels(store)[0][3] is not None
    assert store.rows("select choice from current_labels where pair_id = ?", [pair]) == [(first,)]


@with_thirty_pairs
def test_two_people_never_get_the_same_pair(store: PairStore):
    server = label_server(store)
    people = [server.enter(name) for name in ("ann", "bob", "eve")]
    while any(person.images for person in people):
        for person in people:
            if person.images:
                person.choose("left")
            person.reload()
        shown = [tuple(sorted(person.images)) for person in people if person.images]
        assert len(set(shown)) == len(shown)
    store.ingest()
    assert store.rows("select count(*), count(distinct pair_id) from labels") == [(30, 30)]


def test_overlap_is_the_number_of_people_who_decide_each_pair(store: PairStore):
    fill(store, n_prompts=4)
    server = label_server(store, overlap=2)
    for name in ("ann", "bob", "eve"):
        person = server.enter(name)
        while person.images:
            person.choose("left")
    store.ingest()
    assert store.rows("select distinct n from (select count(distinct labeler) as n from labels group by pair_id)") == [
        (2,)
    ]
    assert labels(store, "human:eve") == []


def test_one_person_on_two_screens_gets_each_pair_once(store: PairStore):
    fill(store, n_prompts=6)
    server = label_server(store)
    desktop, phone = server.enter("ann"), server.enter("ann")
    assert set(desktop.images) != set(phone.images)
    while desktop.images or phone.images:
        for person in (desktop, phone):
            if person.reload().images:
                person.choose("right")
    assert [revision for _, revision, _, _ in labels(store)] == [0] * 6


@with_thirty_pairs
def test_a_choice_sent_twice_counts_once(store: PairStore):
    person = label_server(store).enter()
    ticket = person.ticket
    person.choose("left")
    person.choose("left", ticket=ticket)
    assert person.message.startswith("That pair is no longer assigned to you")
    assert len(labels(store)) == 1


@with_thirty_pairs
@pytest.mark.parametrize("choice", ["", "a", "both", "LEFT"])
def test_an_unknown_choice_is_refused_and_the_pair_stays(store: PairStore, choice: str):
    person = label_server(store).enter()
    ticket = person.ticket
    assert person.choose(choice, status=400).ticket == ticket
    assert labels(store) == []


@with_thirty_pairs
@pytest.mark.parametrize("ms", ["", "-5", "1e9", "٣", "9" * 400])
def test_an_invalid_time_is_not_stored(store: PairStore, ms: str):
    label_server(store).enter().choose("left", ms=ms)
    store.ingest()
    assert store.rows("select response_ms from labels") == [(None,)]


def test_pairs_of_a_silent_person_go_to_others(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    fill(store, n_prompts=1)
    server = label_server(store)
    ann, bob = server.enter("ann"), server.enter("bob")
    assert ann.images
    assert not bob.images
    assert "Other people are looking at 1 pair." in bob.text
    monkeypatch.setattr(assignment, "LEASE", 0.0)
    assert set(bob.reload().images) == set(ann.images)
    # nobody has decided it: the first answer counts
    ann.choose("left")
    bob.choose("left")
    assert bob.message.startswith("That pair is no longer assigned to you")
    assert [len(labels(store, name)) for name in ("human:ann", "human:bob")] == [1, 0]


def test_pairs_decided_in_an_earlier_run_are_not_shown_again(store: PairStore, pairs: list):
    label_server(store).enter().choose("left").choose("tie").choose("skip").choose("right").choose("undo")
    again = label_server(store)
    done = {pair for pair, _, choice, left in labels(store) if left or choice != "skip"}
    assert again.page.queue.progress("human:ann") == {"done": 3, "total": 30, "own": 3}
    person = again.enter()
    while person.images:
        person.choose("left")
    revisions = {pair: [revision for of, revision, _, _ in labels(store) if of == pair] for pair in pairs}
    # only the pair whose answer was undone is shown once more
    assert sorted(map(len, revisions.values())) == [1] * 29 + [3]
    assert all(len(revisions[pair]) == 1 for pair in done if pair in revisions and len(revisions[pair]) < 3)
    assert check(store) == []


def test_imported_labels_of_other_people_do_not_count_as_decided(store: PairStore, pairs: list):
    store.append("labelers", [{"labeler": "human:pickapic", "kind": "human", "config": '{"imported":true}'}])
    for pair in pairs:
        add_label(store, pair, "human:pickapic", "a")
    store.ingest()
    assert label_server(store).page.queue.n_open() == 30
    # a person who enters under that name has decided them
    assert not label_server(store).enter("pickapic").images


@with_thirty_pairs
def test_the_name_of_a_scorer_is_refused_on_the_page(store: PairStore):
    add_labeler(store, "human:robot", kind="ai")
    store.ingest()
    server = label_server(store)
    for name, message in (
        ("robot", "of kind ai"),
        ("", "a name can have up to"),
        ("a/b", "a name can have up to"),
        ("x" * 99, "a name can have up to"),
    ):
        sent = {"token": server.links[-1][0], "name": name}
        answer = server.browser().post("/enter", data=sent, headers={"origin": "http://127.0.0.1:8420"})
        assert answer.status_code == 400
        assert message in unescape(answer.text)
    assert len(server.links) == 1


@with_thirty_pairs
def test_answers_are_accepted_while_another_process_writes(store: PairStore):
    person = label_server(store).enter()
    with store.session(write=True):
        start = time.monotonic()
        for _ in range(5):
            person.choose("left")
    # nobody waited for the lock
    assert time.monotonic() - start < 5
    assert len(labels(store)) == 5


@with_thirty_pairs
def test_an_answer_that_cannot_be_saved_is_reported_and_can_be_given_again(store: PairStore):
    person = label_server(store).enter()
    ticket = person.ticket
    store.journal.rename(store.path / "away")
    person.choose("left", status=503)
    assert person.message.startswith("Not saved yet: cannot write")
    assert person.ticket == ticket
    (store.path / "away").rename(store.journal)
    assert person.choose("left").message == "Saved: the first image."
    assert len(labels(store)) == 1
    assert check(store) == []


def test_a_pair_with_an_unreadable_image_is_excluded_and_counted(store: PairStore):
    fill(store, n_prompts=3)
    ((good,),) = store.rows("select pair_id from pairs order by pair_id limit 1")
    for image_a, image_b, pair in store.rows("select image_a, image_b, pair_id from pairs order by pair_id"):
        if pair != good:
            path = store.image_path(image_a)
            path.write_bytes(path.read_bytes()[:-20])
            store.image_path(image_b).unlink()
    server = label_server(store)
    person = server.enter()
    assert set(person.images) == set(pair_images(store)[good])
    assert not person.choose("left").images
    assert server.page.excluded == {"image hash": 2}
    assert "1</b> of 1<" in person.text


def test_prompts_are_shown_as_text(store: PairStore):
    text = "<script>alert(1)</script> {{ 7*7 }} \x00\x1b[31m\u202e </h1><img src=x onerror=alert(1)>"
    prompt = add_prompt(store, text)
    add_pair(store, prompt, add_image(store, (1, 2, 3)), add_image(store, (3, 2, 1)))
    store.ingest()
    shown = label_server(store).enter().prompt
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {{ 7*7 }} \N{REPLACEMENT CHARACTER}" in shown
    assert not {"<", "\x00", "\x1b", "\u202e"} & set(shown)


def test_the_page_is_blind(store: PairStore):
    (pair,) = fill(store, n_prompts=1)
    add_label(store, pair, "pickscore", "a", margin=3.25)
    store.ingest()
    text = label_server(store).enter().text
    assert not any(word in text for word in ("pickscore", "3.25", str(pair), pair.hex, "model", ">a<", ">b<"))


# Queues


def test_the_random_queue_depends_on_its_seed_alone(store: PairStore, pairs: list):
    first, again, other = (pairs_to_label(store, LabelConfig(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == sorted(pairs)
    assert pairs_to_label(store, LabelConfig(seed=1, limit=7)) == first[:7]


def test_disagreements_and_close_pairs_come_first(store: PairStore):
    prompt = add_prompt(store, "one")
    images = sorted(add_image(store, (value, 0, 0)) for value in (10, 60, 120, 240))
    pairs = {(x, y): add_pair(store, prompt, images[x], images[y]) for x in range(4) for y in range(x + 1, 4)}
    for name, scores in {"one@1": (0, 1, 2, 9), "two@1": (0, 1, 9, 2), "three@1": (0, 3, 2, 4)}.items():
        add_scores(store, name, {(prompt, image): score for image, score in zip(images, scores, strict=True)})
    store.ingest()
    # one and three put image 3 above 2, two puts 2 above 3; three alone puts 1 above 2
    disagreed = pairs_to_label(store, LabelConfig(queue="disagreements"))
    assert set(disagreed) == {pairs[2, 3], pairs[1, 2]}
    add_scores(store, "four@1", {(prompt, image): score for image, score in zip(images, (0, 3, 2, 4), strict=True)})
    store.ingest()
    # now 1 against 2 is two to two, 2 against 3 three to one
    for name in ("disagreements", "fights"):  # the second is the name of 0.1
        assert pairs_to_label(store, LabelConfig(queue=name)) == [pairs[1, 2], pairs[2, 3]]
    close = pairs_to_label(store, LabelConfig(queue="close"))
    assert sorted(close) == sorted(pairs.values())
    # 0 and 3 are far apart for every scorer
    assert close[-1] == pairs[0, 3]


def test_any_query_that_selects_pair_ids_is_a_queue(store: PairStore, pairs: list):
    query = "select pair_id, 1 as more from pairs order by pair_id desc limit 5"
    assert pairs_to_label(store, LabelConfig(queue=query)) == sorted(pairs, reverse=True)[:5]


@with_thirty_pairs
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select 1 as x", "needs a column pair_id"),
        ("nonsense", "must be one of random, disagreements, close, eval, eval:NAME, or a query"),
        ("select 'x' as pair_id", "not an id"),
        ("select uuid() as pair_id", "not a pair of"),
        ("select pair_id from pairs where false", "finds no pairs"),
        ("disagreements", "two scorers that disagree"),
        ("eval", "create some with `prefloop eval`"),
        ("delete from labels", "as a query"),
        ("select * from read_text('/etc/passwd')", "as a query"),
    ],
)
def test_an_invalid_or_empty_queue_is_refused(store: PairStore, query: str, message: str):
    with pytest.raises(UsageError, match=message):
        pairs_to_label(store, LabelConfig(queue=query))


# Repeats


@pytest.mark.slow(reason="starts processes")
def test_a_fraction_is_shown_again_and_measures_self_agreement(store: PairStore):
    fill(store, n_prompts=60)
    person = label_server(store, repeats=0.3, seed=3).enter()
    shown: dict[frozenset, int] = {}
    now = 0
    while person.images:
        pair = frozenset(person.images)
        last = shown.get(pair)
        assert last is None or now - last > assignment.REPEAT_GAP
        shown[pair] = now
        # consistent for the first 40 answers, then always the other image
        chosen = min(person.images) if now < 40 else max(person.images)
        person.choose("left" if person.images[0] == chosen else "right")
        now += 1
    rows = labels(store)
    repeated = {pair for pair, revision, _, _ in rows if revision == 1}
    # 60 pairs in about 60 / 0.7 assignments; 3.5 standard deviations of 0.3 * 86 are 15
    assert 10 <= len(repeated) <= 41
    assert max(revision for _, revision, _, _ in rows) == 1
    same = [len({choice for of, _, choice, _ in rows if of == pair}) == 1 for pair in repeated]
    (row,) = agreement(store).to_pylist()
    assert (row["labeler"], row["other"], row["n"]) == ("human:ann", "human:ann", len(repeated))
    assert row["agree"] == pytest.approx(sum(same) / len(same))
    assert 0 < row["agree"] < 1


@with_thirty_pairs
def test_an_undone_answer_is_not_a_repetition(store: PairStore):
    person = label_server(store).enter()
    person.choose("left").choose("undo")
    person.choose("right")
    store.ingest()
    assert agreement(store).to_pylist() == []


# Parts


@with_thirty_pairs
def test_compacting_small_parts_keeps_every_label(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compaction, "MANY", 10)
    server = label_server(store)
    person = server.enter()
    for number in range(14):
        person.choose("left" if number % 5 else "tie")
    before = labels(store)
    person.choose("undo")
    server.page.flush()
    assert len(list(store.journal.glob("*-labels-*"))) == 2  # 14 labels in one part, and what was undone
    after = labels(store)
    assert [row for row in after if row in before] == before
    assert len(after) == 15
    store.rebuild()
    assert labels(PairStore.open(store.path)) == after
    assert check(store) == []


def test_compacting_does_not_move_a_row_before_the_one_that_replaced_it(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
):
    prompt, images = add_prompt(store, "one"), [add_image(store, (value, 0, 0)) for value in range(13)]
    rows = [row for both in combinations(images, 2) if (row := new_pair(prompt, *both, "generate"))]  # 78
    store.append("pairs", rows)
    pairs = [row["pair_id"] for row in rows]
    add_labeler(store, "me")
    add_label(store, pairs[1], "me", "a")  # a small part, before …
    row = {"labeler": "me", "revision": 0, "choice": "b"}
    store.append("labels", [row | {"pair_id": pair} for pair in (pairs[0], *pairs[2:])])  # … a large one, before …
    add_label(store, pairs[0], "me", "tie")  # … one that differs
    store.ingest()
    assert store.rows("select choice from labels where pair_id = ?", [pairs[0]]) == [("b",)]
    monkeypatch.setattr(compaction, "MANY", 1)
    add_label(store, pairs[3], "me", "a", revision=1)
    store.ingest()
    assert len(list(store.journal.glob("*-labels-*"))) == 2
    store.rebuild()
    assert store.rows("select choice from labels where pair_id = ?", [pairs[0]]) == [("b",)]
    assert check(PairStore.open(store.path)) == []


def test_new_pairs_join_a_queue_that_runs_out(store: PairStore):
    fill(store, n_prompts=1)
    server = label_server(store)
    person = server.enter().choose("left")
    assert not person.images
    fill(store, n_prompts=2)
    server.page.flush()
    assert person.reload().images


# The command line


@with_thirty_pairs
@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("label --store stroe", 1, "no store at stroe"),
        ("browse --store stroe", 1, "no store at stroe"),
        ("label --overlap 0", 2, "overlap must be from 1 to 1000"),
        ("label --repeats nan", 2, "repeats must be a fraction"),
        ("label --repeats 0.6", 2, "repeats must be a fraction"),
        ("label --limit 0", 2, "limit must be at least 1"),
        ("label --port 70000", 2, "port must be from 0 to 65535"),
        ("label --labeler a/b", 2, "a name can have up to 64"),
        ("label --labeler me --labeler human:me", 2, "a labeler is named twice"),
        ("label --host http://x", 2, "host must be a name or an address"),
        (
            "label --queue nothing --port 0",
            2,
            "--queue must be one of random, disagreements, close, eval, eval:NAME, or a query",
        ),
        ("browse --port -1", 2, "port must be from 0 to 65535"),
        ("relabel --scorer human --scorer clip", 2, "human labels alone"),
        ("relabel --scorer human --labeler a/b", 2, "a name can have up to 64"),
    ],
)
def test_a_usage_error_is_one_line(
    store: PairStore, monkeypatch: pytest.MonkeyPatch, line: str, code: int, message: str
):
    monkeypatch.chdir(store.path.parent)
    ended = CliRunner().invoke(app, line.split() if "stroe" in line else [*line.split(), "--store", str(store.path)])
    assert (ended.exit_code, ended.stdout) == (code, "")
    (printed,) = ended.stderr.splitlines()
    assert message in printed
    assert not Path("stroe").exists()


@with_thirty_pairs
def test_one_page_labels_in_a_store_at_a_time(store: PairStore):
    with store.stage_lock("label", "page"):
        ended = CliRunner().invoke(app, ["label", "--port", "0", "--store", str(store.path)])
    assert ended.exit_code == 4
    assert f"in use by process {os.getpid()}" in ended.stderr


@pytest.mark.parametrize("verb", ["label", "browse"])
@with_thirty_pairs
def test_a_port_that_is_taken_is_named(store: PairStore, verb: str):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = CliRunner().invoke(app, [verb, "--port", str(port), "--store", str(store.path)])
    assert ended.exit_code == 1
    assert f"cannot listen on port {port} of 127.0.0.1: Address already in use" in ended.stderr
    assert store.rows("select count(*) from runs") == [(0,)]


@with_thirty_pairs
def test_a_link_of_a_named_labeler_belongs_to_that_labeler(store: PairStore):
    server = label_server(store, labelers=("ann", "bob"))
    for (token, name), expected in zip(list(server.links), ("ann", "bob"), strict=True):
        assert name == expected
        client = server.browser()
        sent = {"token": token, "name": "eve"}
        assert client.post("/enter", data=sent, headers={"origin": "http://127.0.0.1:8420"}).status_code == 303
        assert f"human:{expected}" in client.get("/").text
    # each was replaced by a fresh one for the same person
    assert [name for _, name in server.links] == ["ann", "bob", "ann", "bob"]


@with_thirty_pairs
def test_a_server_announces_one_link_at_first(store: PairStore):
    server = label_server(store)
    assert len(server.links) == 1
    server.enter("ann")
    assert len(server.links) == 2
