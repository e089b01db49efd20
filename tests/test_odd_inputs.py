"""Odd stores, queries and outputs end in one line that names them, and in the right exit code."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from content import add_label, add_labeler, command, environment, fill
from prefloop.cli import app
from prefloop.store import PairStore, PrefloopError
from prefloop.store.check import check
from prefloop.store.runs import run
from typer.testing import CliRunner


@pytest.fixture
def filled(store: PairStore) -> PairStore:
    pairs = fill(store)
    add_labeler(store, "me")
    add_label(store, pairs[0], "me", "a")
    store.ingest()
    return store


def test_odd_inputs_and_outputs_end_in_one_line(filled: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no store")
    (tmp_path / "folder").mkdir()
    here, long = ["--store", str(filled.path)], "x" * 300
    stores = {
        "nope": (1, "no store at"),
        "file": (2, "a store is a folder"),
        "folder": (1, "no store at"),
        long: (1, "too long"),
    }
    verbs = (["query", "select 1"], ["schema"], ["export", "out"], ["agreement"])
    lines = [(code, ["store", *verb, "--store", name], why) for name, (code, why) in stores.items() for verb in verbs]
    lines += [
        (code, [verb, "--port", "0", "--store", name], why)
        for name, (code, why) in stores.items()
        for verb in ("label", "browse")
    ]
    quality = ["scorers", "quality", "--labeler", "nobody"]
    lines += [
        (2, ["store", "query", "select '\udcff'", *here], "encode"),
        (2, ["store", "query", "-", *here], "the query on stdin is not UTF-8 text"),
        (2, ["store", "export", "folder", *here], "folder exists; name another folder"),
        (1, ["store", "export", "file/out", *here], "file"),
        (1, ["store", "export", long, *here], "too long"),
        (2, [*quality, *here], "has no labels by 'nobody'"),
        (2, ["label", "--queue", "select '\udcff'", "--port", "0", *here], "encode"),
    ]
    for code, words, why in lines:
        ended = CliRunner().invoke(app, words, input=b"\xff\xfe")
        assert (ended.exit_code, ended.stdout) == (code, ""), (words, ended.output, ended.exception)
        assert ended.stderr.startswith("prefloop: "), words
        assert ended.stderr.count("\n") == 1
        assert why in ended.stderr, words


def test_a_full_output_device_ends_in_one_line(filled: PairStore):
    with open("/dev/full", "wb") as full:
        words = command("store", "query", "select 1", "--store", filled.path)
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, env=environment(), text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (1, "prefloop: No space left on device\n")


def test_a_name_that_is_not_utf8_in_the_settings_of_a_run_leaves_the_store_intact(store: PairStore):
    """The run's row is JSON in the journal; if the database could not read it, every command would fail."""
    for error in (None, PrefloopError("cannot read \udcff")):
        with suppress(PrefloopError), run(store, "import", {"source": Path("\udcff.parquet"), "\udcff": 1}) as this:
            this.summary["from"] = "\udcff"
            if error:
                raise error
    opened = PairStore.open(store.path)
    rows = opened.rows("select config ->> 'source', error from runs order by error nulls first")
    assert rows == [("\\udcff.parquet", None), ("\\udcff.parquet", "PrefloopError: cannot read \\udcff")]
    assert check(opened) == []


@pytest.mark.parametrize("odd", [{"prompt": "\ud800"}, {"tags": {"\ud800": "x"}}, {"chosen_model": "\ud800"}])
def test_a_lone_surrogate_in_json_is_refused_in_one_line(tmp_path: Path, odd: dict):
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "x", "chosen": "a.png", "rejected": "b.png"} | odd))
    ended = CliRunner().invoke(app, ["store", "import", str(rows), "--store", str(tmp_path / "new")])
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1), ended.output
    assert "half of a surrogate pair" in ended.stderr
    assert not (tmp_path / "new").exists()


NUL = [
    ["store", "merge", "a\0b"],
    ["store", "export", "a\0b"],
    ["store", "backup", "a\0b"],
    ["generate", "--prompts", "a\0b"],
    ["generate", "--model", "a\0b"],
    ["train", "--labeler", "x", "--output-dir", "out", "--config", "a\0b"],
    ["train", "--labeler", "x", "--output-dir", "out", "--init-from", "a\0b"],
    ["relabel", "--scorer", "clip", "--checkpoint", "clip=a\0b"],
    ["scorers", "quality", "--labeler", "nobody", "--output-dir", "a\0b"],
    ["card", "a\0b"],
    ["demo", "--output-dir", "a\0b"],
]


@pytest.mark.parametrize("words", NUL, ids=lambda words: " ".join(words).replace("\0", "␀"))
def test_a_path_with_a_nul_character_ends_without_a_traceback(
    filled: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    monkeypatch.chdir(tmp_path)
    here = [] if words[0] == "demo" else ["--store", str(filled.path)]
    ended = CliRunner().invoke(app, [*words, *here])
    assert isinstance(ended.exception, SystemExit), ended.exception
    assert ended.exit_code in (1, 2)
    # Typer itself refuses options that it knows to be paths
    assert "embedded null byte" in ended.stderr or len(ended.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"store"}
