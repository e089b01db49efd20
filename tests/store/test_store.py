"""The store keeps every row once, and reports damage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import duckdb
import pytest
from content import (
    TESTS,
    add_generation,
    add_image,
    add_label,
    add_labeler,
    add_pair,
    add_prompt,
    add_scores,
    environment,
    fill,
    image_bytes,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prefloop.store import (
    BusyError,
    IntegrityError,
    Interrupted,
    PairStore,
    PrefloopError,
    UsageError,
    ingest,
    prompt_id,
)
from prefloop.store.check import check, logical_hashes
from prefloop.store.runs import run

# Keeping


def test_rows_come_out_as_they_went_in(store: PairStore):
    prompt = add_prompt(store, "a red circle", relation="alone")
    red, blue = add_image(store, (255, 0, 0)), add_image(store, (0, 0, 255))
    pair = add_pair(store, prompt, red, blue)
    store.ingest()
    ((text, split, tags),) = store.rows("select prompt, split, tags from prompts")
    assert (text, json.loads(tags)) == ("a red circle", {"relation": "alone"})
    assert split in ("train", "validation")
    assert store.rows("select * from pairs") == [(pair, prompt, *sorted([red, blue]), "generate", None)]
    assert store.image_path(red).read_bytes() == image_bytes((255, 0, 0))
    assert {path for (path,) in store.rows("select path from image_files")} == {
        str(store.image_path(image).relative_to(store.path)) for image in (red, blue)
    }


def test_importing_twice_adds_nothing(store: PairStore):
    fill(store)
    before = logical_hashes(store)
    fill(store)
    assert logical_hashes(store) == before
    assert store.ingest() == 0


def test_ingesting_again_adds_nothing_and_a_reopened_store_is_the_same(store: PairStore):
    store.add_prompts([("one", {}), ("two", {})])
    assert store.ingest() == 2
    assert store.ingest() == 0
    before = logical_hashes(store)
    assert logical_hashes(PairStore.open(store.path)) == before


def test_opening_ingests_parts_that_a_killed_process_left(store: PairStore):
    add_prompt(store, "left behind")  # in the journal, never ingested
    assert store.rows("select prompt from prompts") == []
    assert PairStore.open(store.path).rows("select prompt from prompts") == [("left behind",)]


def test_a_half_written_part_is_ignored(store: PairStore):
    fill(store)
    before = logical_hashes(store)
    whole = next(store.journal.glob("*-prompts-*.parquet")).read_bytes()
    (store.journal / ".00000000000000000001-prompts-1-aaaaaaaa.parquet.tmp").write_bytes(whole[: len(whole) // 2])
    assert PairStore.open(store.path).ingest() == 0
    assert logical_hashes(store) == before
    assert check(store) == []


def test_the_smallest_row_of_a_prompt_counts_however_many_parts_are_ingested_at_once(store: PairStore):
    for number in range(60):
        store.add_prompts((f"prompt {n}", {"import": str(number)}) for n in range(number, number + 5))
    store.ingest()
    rows = store.rows("select prompt, json_extract_string(tags, '$.import') from prompts")
    # prompt n is in imports n - 4 … n; the tags that come first as text count
    assert dict(rows) == {f"prompt {n}": min(map(str, range(max(0, n - 4), min(n, 59) + 1))) for n in range(64)}


def test_every_prompt_is_in_exactly_one_split(store: PairStore):
    texts = [f"prompt {number}" for number in range(2000)]
    store.add_prompts((text, {}) for text in texts)
    store.add_prompts((text, {"again": "yes"}) for text in texts)
    store.ingest()
    counts = dict(store.rows("select split, count(*) from prompts group by all"))
    assert sum(counts.values()) == 2000
    # 1 in 20: 100 expected, standard deviation sqrt(2000 * 0.05 * 0.95) = 9.7; five of them
    assert abs(counts["validation"] - 100) < 49


def test_an_image_is_not_paired_with_itself_and_the_order_of_a_pair_does_not_matter(store: PairStore):
    prompt = add_prompt(store, "one")
    red, blue = add_image(store, (255, 0, 0)), add_image(store, (0, 0, 255))
    assert add_pair(store, prompt, red, blue) == add_pair(store, prompt, blue, red)
    with pytest.raises(AssertionError):
        add_pair(store, prompt, red, red)
    store.ingest()
    assert store.rows("select count(*), bool_and(image_a < image_b) from pairs") == [(1, True)]


# Labels and views


def test_a_later_label_supersedes_and_none_is_overwritten(store: PairStore):
    (pair,) = fill(store, n_prompts=1)
    add_labeler(store, "me")
    add_label(store, pair, "me", "a", revision=0)
    add_label(store, pair, "me", "b", revision=1)
    add_label(store, pair, "me", "tie", revision=1)  # the same repetition again: the smaller one counts
    store.ingest()
    assert store.rows("select choice from labels order by revision") == [("a",), ("b",)]
    assert store.rows("select choice from current_labels") == [("b",)]
    ((chosen, image_b),) = store.rows("select chosen, image_b from preferences join pairs using (pair_id)")
    assert chosen == image_b


def test_evaluation_pairs_have_a_split_of_their_own(store: PairStore):
    """Whichever split their prompt is in: `split = 'train'` never gives one."""
    add_labeler(store, "me")
    splits: dict[str, set[str]] = {"generate": set(), "eval": set()}
    for source in splits:
        for number in range(6):  # prompt 4 is for validation
            prompt = add_prompt(store, f"prompt {number}")
            images = (add_image(store, (value, number, len(source))) for value in (1, 2))
            add_label(store, add_pair(store, prompt, *images, source=source), "me", "a")
    store.ingest()
    for source, split in store.rows("select distinct source, split from preferences"):
        splits[source].add(split)
    assert splits == {"generate": {"train", "validation"}, "eval": {"eval"}}


def test_preferences_have_the_chosen_side_and_no_ties_or_skips(store: PairStore):
    pairs = fill(store, n_prompts=4)
    add_labeler(store, "me")
    for pair, choice in zip(pairs, ("a", "b", "tie", "skip"), strict=True):
        add_label(store, pair, "me", choice, p_a=0.75)
    store.ingest()
    rows = store.rows(
        "select pair_id, chosen = image_a, rejected = image_b, p_chosen from preferences join pairs using (pair_id)"
    )
    # p_chosen is p_a for a, and 1 - 0.75 = 0.25 for b
    assert set(rows) == {(pairs[0], True, True, 0.75), (pairs[1], False, False, 0.25)}


def test_agreement_on_five_pairs(store: PairStore):
    x_choices = ("a", "b", "a", "tie", "skip")
    y_choices = ("a", "b", "b", "a", "a")
    for pair, x, y in zip(fill(store, n_prompts=5), x_choices, y_choices, strict=True):
        add_label(store, pair, "x", x)
        add_label(store, pair, "y", y)
    store.ingest()
    # the skipped pair is out: 4 pairs, 2 alike; of the 3 that both decided, 2 alike
    assert store.rows("select * from agreement") == [("x", "y", 4, 0.5, 3, pytest.approx(2 / 3))]


def test_win_rates_fold_both_orders_and_count_a_tie_one_half(store: PairStore):
    model, other = UUID(int=1), UUID(int=2)
    store.append(
        "models",
        [{"model_id": model, "name": "m", "config": "{}"}, {"model_id": other, "name": "n", "config": "{}"}],
    )
    m_is_a = set()
    for number, winner in enumerate(["m", "m", "m", "n", "n", "tie", "m", "skip"]):
        prompt = add_prompt(store, f"prompt {number}")
        of_m, of_n = add_image(store, (number, 0, 0)), add_image(store, (number, 255, 0))
        add_generation(store, prompt, model, of_m)
        add_generation(store, prompt, other, of_n)
        pair = add_pair(store, prompt, of_m, of_n)
        first = "m" if of_m < of_n else "n"
        m_is_a.add(first)
        add_label(store, pair, "me", winner if winner in ("tie", "skip") else "a" if winner == first else "b")
    store.ingest()
    assert m_is_a == {"m", "n"}, "the images must occur in both orders, or folding is not tested"
    # 7 judged: m wins 4, n wins 2, one tie: (4 + 0.5) / 7
    rows = store.rows("select labeler, model, other, n, win_rate, ties from win_rates")
    assert rows == [("me", "m", "n", 7, pytest.approx(4.5 / 7), 1)]


def test_score_pairs_takes_a_scorer_by_name_or_with_its_revision(store: PairStore):
    fill(store, n_prompts=1)
    ((pair, prompt, a, b),) = store.rows("select pair_id, prompt_id, image_a, image_b from pairs")
    add_scores(store, "red@1", {(prompt, a): 1.0, (prompt, b): 2.0})
    add_scores(store, "red@2", {(prompt, a): 5.0, (prompt, b): 4.0})
    add_scores(store, "redder@1", {(prompt, a): 9.0, (prompt, b): 9.0})
    store.ingest()
    query = "select pair_id, scorer, score_a, score_b from score_pairs(?) order by scorer"
    assert store.rows(query, ["red"]) == [(pair, "red@1", 1.0, 2.0), (pair, "red@2", 5.0, 4.0)]
    assert store.rows(query, ["red@2"]) == [(pair, "red@2", 5.0, 4.0)]


# Runs


def test_a_run_is_written_at_its_start_and_its_end(store: PairStore):
    with run(store, "test", {"nothing": float("nan"), "where": Path("x")}) as this:
        store.ingest()
        assert store.rows("select status from runs") == [("running",)]
        this.summary["n"] = 3
    ((status, config, summary),) = store.rows("select status, config, summary from runs")
    assert status == "done"
    assert json.loads(config) == {"nothing": None, "where": "x"}
    assert json.loads(summary) == {"n": 3}


@pytest.mark.parametrize(("error", "status"), [(ZeroDivisionError("why"), "failed"), (Interrupted("x"), "interrupted")])
def test_a_failed_or_interrupted_run_is_written_as_such(store: PairStore, error: Exception, status: str):
    with pytest.raises(type(error)), run(store, "test", {}):
        raise error
    ((found, message),) = store.rows("select status, error from runs")
    assert found == status
    assert str(error) in message
    before = logical_hashes(store)
    store.rebuild()  # both rows of the run are in the journal; the later one must win again
    assert logical_hashes(store) == before


def parents(store: PairStore) -> dict[str, list]:
    """The parents of each run, by its kind."""
    return dict(store.rows("select kind, parents from runs"))


def test_a_run_inside_the_block_of_another_is_its_child(store: PairStore):
    used = UUID(int=7)
    with run(store, "round", {"round": 1}) as this_round:
        with run(store, "generate", {}) as generated:
            pass
        with pytest.raises(ZeroDivisionError), run(store, "relabel", {}):
            raise ZeroDivisionError
        with run(store, "train", {}, parents=[used, this_round.run_id]) as trained, run(store, "eval", {}):
            pass
        with run(store, "after", {}):  # a child of the round again, not of the runs that ended or failed before
            pass
    with run(store, "outside", {}):
        pass
    store.ingest()
    inside = [this_round.run_id]
    assert generated.parents == inside
    assert parents(store) == {
        "round": [],
        "generate": inside,
        "relabel": inside,
        "train": [this_round.run_id, used],
        "eval": [trained.run_id],
        "after": inside,
        "outside": [],
    }


def test_a_run_in_another_store_is_not_a_child(store: PairStore, tmp_path: Path):
    other = PairStore.create(tmp_path / "other")
    with run(store, "round", {"round": 1}) as this_round:
        with run(other, "import", {}):
            pass
        with run(PairStore(store.path / "images" / ".."), "generate", {}):  # the same store under another path
            pass
    assert parents(other) == {"import": []}
    assert parents(store) == {"round": [], "generate": [this_round.run_id]}


# Proof, damage and cure


@pytest.fixture
def whole(store: PairStore) -> PairStore:
    pairs = fill(store)
    add_labeler(store, "me")
    for pair in pairs:
        add_label(store, pair, "me", "a", p_a=0.5)
    add_scores(store, "red@1", dict.fromkeys(store.rows("select prompt_id, image_a from pairs"), 1.5))
    with run(store, "test", {}):
        store.ingest()
    return store


def test_an_intact_store_has_no_problems_and_rebuilds_to_the_same_rows(whole: PairStore):
    assert check(whole) == []
    before = logical_hashes(whole)
    assert before["labels"].startswith("3:")
    whole.database.unlink()
    whole.rebuild()
    assert logical_hashes(whole) == before
    assert check(PairStore.open(whole.path)) == []


def test_check_leaves_nothing_behind(whole: PairStore):
    before = sorted(path.name for path in whole.path.rglob("*"))
    check(whole)
    assert sorted(path.name for path in whole.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("table", "row", "where"),
    [
        ("labels", {"pair_id": UUID(int=7), "labeler": "me", "revision": 0, "choice": "a"}, "labels.pair_id → pairs"),
        ("scores", {"scorer": "gone@1", "score": 0.0}, "scores.scorer → scorers"),
        ("pairs", {"pair_id": UUID(int=7), "source": "import"}, "pairs.image_b → images"),
    ],
)
def test_check_finds_a_missing_reference(whole: PairStore, table: str, row: dict, where: str):
    ((prompt, image),) = whole.rows("select prompt_id, image_a from pairs limit 1")
    if table == "scores":
        row |= {"prompt_id": prompt, "image_id": image}
    if table == "pairs":
        row |= {"prompt_id": prompt, "image_a": image, "image_b": UUID(int=2**128 - 1)}
    whole.append(table, [row])
    whole.ingest()
    assert [(p.what, p.where, p.n) for p in check(whole)] == [("missing reference", where, 1)]


def test_check_finds_a_changed_image_and_a_missing_one(whole: PairStore):
    (changed, gone, *_) = sorted(path for path in (whole.path / "images").rglob("*.png"))
    data = bytearray(changed.read_bytes())
    data[-20] ^= 1
    changed.write_bytes(data)
    gone.unlink()
    problems = {p.what: (p.where, p.n) for p in check(whole)}
    assert problems == {
        "changed image": (str(changed.relative_to(whole.path)), 1),
        "missing image": (str(gone.relative_to(whole.path)), 1),
    }
    assert check(whole, images=False) == []


def test_check_finds_a_missing_journal_part(whole: PairStore):
    part = next(whole.journal.glob("*-prompts-*.parquet"))
    part.unlink()
    assert {(p.what, p.where) for p in check(whole)} == {
        ("missing journal part", part.name),
        ("table differs from its journal", "prompts"),
    }


def test_check_finds_a_row_that_was_changed_behind_the_journal(whole: PairStore):
    with duckdb.connect(whole.database) as connection:
        connection.execute("update scores set score = 2 where score = 1.5")
    PairStore.open(whole.path)  # as many rows as there should be
    assert [(p.what, p.where) for p in check(whole)] == [("table differs from its journal", "scores")]


def refused_with_cure(path: Path) -> None:
    with pytest.raises(IntegrityError, match="prefloop store rebuild") as caught:
        PairStore.open(path)
    assert caught.value.exit_code == 5


def test_a_deleted_database_is_named_with_its_cure(whole: PairStore):
    before = logical_hashes(whole)
    whole.database.unlink()
    refused_with_cure(whole.path)
    with pytest.raises(IntegrityError, match="prefloop store rebuild"):
        PairStore.create(whole.path)
    assert not whole.database.exists()
    whole.rebuild()
    assert logical_hashes(PairStore.open(whole.path)) == before


@pytest.mark.parametrize("left", [0, 100, 4096, 12288, 0.5, -1])
def test_a_truncated_database_is_named_with_its_cure(whole: PairStore, left: float):
    before = logical_hashes(whole)
    size = whole.database.stat().st_size
    os.truncate(whole.database, size // 2 if left == 0.5 else size - 1 if left == -1 else int(left))
    with pytest.raises(IntegrityError, match="prefloop store rebuild"):
        PairStore.open(whole.path).sql("from labels join scores using (run_id)")
    whole.rebuild()
    assert logical_hashes(PairStore.open(whole.path)) == before


def test_a_database_with_a_bad_block_is_named_with_its_cure(whole: PairStore):
    data = bytearray(whole.database.read_bytes())
    for at in range(12288 + 8, len(data), 4096):  # behind the headers, a byte of every page
        data[at] ^= 255
    whole.database.write_bytes(data)
    with pytest.raises(IntegrityError, match="prefloop store rebuild"):
        check(PairStore.open(whole.path))


def test_a_damaged_database_is_not_mistaken_for_a_locked_one(tmp_path: Path):
    # DuckDB's message holds the path, and this path holds the word
    store = PairStore.create(tmp_path / "building-blocks")
    os.truncate(store.database, 100)
    refused_with_cure(store.path)


def test_a_row_removed_behind_the_journal_is_found_on_opening(whole: PairStore):
    before = logical_hashes(whole)
    with duckdb.connect(whole.database) as connection:
        connection.execute("delete from labels where pair_id = (select min(pair_id) from labels)")
    refused_with_cure(whole.path)
    whole.rebuild()
    assert logical_hashes(PairStore.open(whole.path)) == before


def test_an_older_database_under_a_newer_journal_catches_up(whole: PairStore, tmp_path: Path):
    shutil.copy(whole.database, tmp_path / "old")
    add_prompt(whole, "newer")
    whole.ingest()
    before = logical_hashes(whole)
    shutil.copy(tmp_path / "old", whole.database)
    assert logical_hashes(PairStore.open(whole.path)) == before


# Making and opening


def test_opening_a_mistyped_path_creates_nothing(tmp_path: Path):
    with pytest.raises(PrefloopError, match="no store at"):
        PairStore.open(tmp_path / "stroe")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_does_not_become_a_store(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not a store"):
        PairStore.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_whose_creation_was_killed_is_created_the_next_time(tmp_path: Path):
    # killed with folders and half a database under its temporary name
    (tmp_path / "store" / "journal").mkdir(parents=True)
    for left_over in ("store.lock", ".pairs.123.duckdb", ".pairs.123.duckdb.wal"):
        (tmp_path / "store" / left_over).write_bytes(b"half")
    store = PairStore.create(tmp_path / "store")
    add_prompt(store, "one")
    store.ingest()
    assert check(PairStore.open(store.path)) == []
    assert not list(store.path.glob(".pairs.*"))


# Processes

_WRITER = """
import sys
from prefloop.store import PairStore
store = PairStore.create(sys.argv[1])
for number in range(8):
    store.add_prompts([(f"{sys.argv[2]} {number}", {}), (f"both {number}", {})])
    store.ingest()
"""


@pytest.mark.slow(reason="starts processes")
def test_two_concurrent_writers_lose_nothing(tmp_path: Path):
    path = tmp_path / "store"
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, path, name], cwd=tmp_path) for name in ("x", "y")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = PairStore.open(path).rows("select prompt from prompts")
    assert {text for (text,) in found} == {f"{name} {number}" for name in ("x", "y", "both") for number in range(8)}
    assert len(found) == 24
    assert check(PairStore.open(path)) == []


_HOLDERS = {
    "store": """
import sys
from prefloop.store import PairStore
with PairStore(__import__("pathlib").Path(sys.argv[1])).session(write=True):
    print("held", flush=True)
    sys.stdin.read()
""",
    "database": """
import sys, duckdb
connection = duckdb.connect(sys.argv[1] + "/pairs.duckdb")
print("held", flush=True)
sys.stdin.read()
""",
}


@pytest.mark.parametrize("holder", _HOLDERS)
def test_a_lock_held_elsewhere_names_the_process(store: PairStore, holder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prefloop.store.pairstore.LOCK_WAIT", 0.1)
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDERS[holder], str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=TESTS,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=rf"process {process.pid}\b") as caught:
        PairStore.open(store.path)
    assert caught.value.exit_code == 4
    process.communicate()
    PairStore.open(store.path)  # let go with the process


def test_the_same_stage_twice_at_once_is_refused_but_another_is_not(store: PairStore):
    with (
        store.stage_lock("relabel", "x"),
        store.stage_lock("relabel", "y"),
        pytest.raises(BusyError, match=f"process {os.getpid()}"),
        store.stage_lock("relabel", "x"),
    ):
        pass
    with store.stage_lock("relabel", "x"):
        pass


# Odd prompts


@pytest.fixture(scope="module")
def collecting(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    return PairStore.create(tmp_path_factory.mktemp("odd") / "store")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=30))
@example(["\u202eright to left\u202c", "<script>alert(1)</script>", "x [/foo] y", "two\nlines\r\nand a\ttab", "=1+1"])
@example(["", " ", "e\u0301", "\u00e9", "'; drop table prompts; --", "\U0001f600"])
@example(["a" * 1_000_000])
def test_any_prompt_comes_back_exactly_under_its_own_id(collecting: PairStore, texts: list[str]):
    collecting.add_prompts((text, {"tag": text[:20]}) for text in texts)
    collecting.ingest()
    found = dict(collecting.rows("select prompt_id, prompt from prompts"))
    assert all(found[prompt_id(text)] == text for text in texts)
    assert len({prompt_id(text) for text in texts}) == len(set(texts))


def test_a_journal_ingested_in_batches_gives_the_same_tables(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    pairs = fill(store, n_prompts=4, images_per_prompt=4)
    add_labeler(store, "me")
    for number, pair in enumerate(pairs):
        add_label(store, pair, "me", "a" if number % 2 else "b")
        add_label(store, pair, "me", "tie")  # of the same key: the smaller one counts
    store.ingest()
    whole = logical_hashes(store)
    monkeypatch.setattr(ingest, "ROWS_AT_ONCE", 5)
    store.rebuild()
    assert logical_hashes(store) == whole
    assert store.rows("select count(*) from labels where choice = 'tie'") == [(0,)]
    assert check(PairStore.open(store.path)) == []


def test_an_ingest_that_fails_between_batches_continues_later(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ingest, "ROWS_AT_ONCE", 5)
    for number in range(8):
        add_prompt(store, f"prompt {number}")
    store.append("prompts", [{"prompt_id": prompt_id("x"), "prompt": "x", "split": "neither", "tags": "{}"}])
    (last, *_) = sorted(store.journal.glob("*-prompts-*.parquet"), reverse=True)
    with pytest.raises(IntegrityError, match="cannot be ingested"):
        store.ingest()
    assert 0 < store.rows("select count(*) from prompts")[0][0] < 8
    last.unlink()
    again = PairStore.open(store.path)
    assert again.rows("select count(*) from prompts") == [(8,)]
    assert check(again) == []


def test_a_database_can_be_read_by_duckdb_1_2(store: PairStore):
    # the header tells which storage it is: 65 is that of DuckDB 1.2
    assert int.from_bytes(store.database.read_bytes()[12:20], "little") <= 65
    add_prompt(store, "one")
    store.ingest()
    store.rebuild()
    assert int.from_bytes(store.database.read_bytes()[12:20], "little") <= 65
