"""Names and prompts from outside cannot control the terminal, wherever they are printed, and survive JSON unchanged."""

import csv
import json
import re
from pathlib import Path

import content
import little_datasets as little
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefloop.cli import app
from prefloop.core.text import csv_cell, json_text, plural, visible, visible_lines
from prefloop.relabel.config import RelabelConfig
from prefloop.store import PairStore, UsageError
from prefloop.store.importers.config import ImportConfig
from typer.testing import CliRunner

HOSTILE = "n\x1b]0;x\x07\x9b2J\u202ee\x7f\u2028\r\x00\u2066z"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def test_visible_leaves_text_alone():
    """Joined emoji, Persian, and the wide space of Japanese too."""
    for text in ("a red circle, été, 赤い\u3000円 😀", "👩\u200d👩\u200d👧", "می\u200cخواهم", "10\u00a0km"):
        assert visible(text) == text
    assert visible("\x1b[31m\n\u202e") == "\ufffd[31m\ufffd\ufffd"
    assert visible("\x9b2J\x7f\u2067\u061c\u2028\udcff\ufeff") == "\ufffd2J" + "\ufffd" * 6
    assert visible_lines("a\tb\nc\rd") == "a\tb\nc\ufffdd"


def test_json_is_readable_and_keeps_its_value():
    value = {HOSTILE: [HOSTILE, "\U000e0001 赤い円\n"]}
    for indent in (None, 1):
        text = json_text(value, indent)
        assert json.loads(text) == value
        assert visible_lines(text) == text
        assert "赤い円" in text


def test_a_csv_cell_is_not_a_formula_and_controls_nothing():
    assert [csv_cell(value) for value in ("=1", "\x1b[2J", 3, None)] == ["'=1", "\ufffd[2J", 3, None]


def test_a_count_has_its_noun_in_singular_or_plural():
    assert [plural(n, "pair") for n in (0, 1, 2)] == ["0 pairs", "1 pair", "2 pairs"]
    assert plural(2, "batch", "batches") == "2 batches"


@pytest.fixture
def hostile(store: PairStore) -> PairStore:
    """Every name is hostile, as if an earlier version had imported them."""
    prompt = content.add_prompt(store, HOSTILE, **{HOSTILE: HOSTILE})
    images = [content.add_image(store, (1, 2, value)) for value in (3, 4)]
    store.append("models", [{"model_id": prompt, "name": HOSTILE, "config": "{}"}])
    for image in images:
        content.add_generation(store, prompt, prompt, image)
    pair = content.add_pair(store, prompt, images[0], images[1])
    for labeler in (HOSTILE, f"={HOSTILE}"):
        content.add_labeler(store, labeler)
        content.add_label(store, pair, labeler, "a")
    content.add_scores(store, f"{HOSTILE}@1", dict.fromkeys(((prompt, image) for image in images), 1.0))
    store.ingest()
    return store


@pytest.mark.slow(reason="runs every command")
def test_no_command_lets_a_name_control_the_terminal(
    hostile: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    everything = "select l.labeler, p.prompt, p.tags from labels l cross join prompts p"
    commands = [
        (0, ["store", "ls"]),
        (0, ["store", "ls", "--json"]),
        (0, ["store", "agreement"]),
        *((0, ["store", "query", everything, "--format", form]) for form in ("table", "json", "jsonl", "csv")),
        (2, ["store", "query", f"select {HOSTILE}"]),
        (2, ["store", "query", "--name", HOSTILE]),
        (2, ["store", "schema", HOSTILE]),
        (2, ["store", "export", "out", "--labeler", "nobody"]),
        (2, ["store", "export", "out", "--where", HOSTILE]),
        (0, ["store", "export", "out", "--format", "csv"]),
        (1, ["store", "import", HOSTILE]),
        (2, ["train", "--labeler", "nobody", "--output-dir", "tuned"]),
        (2, ["train", "--labeler", HOSTILE, "--output-dir", "tuned", "--where", f"{HOSTILE} = 1"]),
        (2, ["label", "--queue", HOSTILE, "--port", "0"]),
        (2, ["scorers", "quality", "--labeler", "nobody"]),
        (2, ["relabel", "--scorer", HOSTILE]),
        (2, ["relabel", "--labeler", HOSTILE]),
        (1, ["store", "stats", "--store", HOSTILE.replace("\0", "")]),
    ]
    for code, words in commands:
        ended = CliRunner().invoke(app, [*words, *([] if "--store" in words else ["--store", str(hostile.path)])])
        assert not CONTROLS.search(ended.stdout + ended.stderr), words
        assert ended.exit_code == code, (words, ended.output, ended.exception)
        assert code == 0 or ended.stderr.count("\n") == 1, words
    labels = (tmp_path / "out" / "labels.csv").read_text()
    assert not CONTROLS.search(labels)
    assert {row["labeler"][:2] for row in csv.DictReader(labels.splitlines())} == {"n\ufffd", "'="}
    (row, _) = json.loads(CliRunner().invoke(app, ["store", "query", everything, "--store", str(hostile.path)]).stdout)
    assert (row["labeler"][-3:], row["prompt"]) == (HOSTILE[-3:], HOSTILE)


def test_the_name_of_a_new_labeler_has_no_invisible_characters(store: PairStore, tmp_path: Path):
    for make in (lambda: RelabelConfig(labeler=HOSTILE), lambda: ImportConfig(source="x", labeler=HOSTILE)):
        with pytest.raises(UsageError, match="labeler must not have invisible characters"):
            make()
    rows = [{**row, "who": name} for row, name in zip(little.pickapic_rows(2), ("ann", HOSTILE), strict=True)]

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    words = ["store", "import", str(tmp_path / "x.parquet"), "--map", "labeler=who", "--max-unreadable", "1"]
    ended = CliRunner().invoke(app, [*words, "--json", "--store", str(store.path)])
    assert ended.exit_code == 0, ended.output
    summary = json.loads(ended.stdout)
    assert summary["excluded"] == {"the labeler's name has invisible characters": 1}
    assert PairStore.open(store.path).rows("select distinct labeler from labels") == [("ann",)]


def test_every_command_prints_through_one_function():
    root = Path(__file__).parents[2]
    found = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("cli.py"))
        if ".venv" not in path.parts
        for _ in re.findall(r"\btyper\.echo\(|\bprint\(", path.read_text())
    ]
    assert found == ["core/cli.py"]  # that is `say` itself
