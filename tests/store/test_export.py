"""An export can be imported again as the same pairs and labels; it exists whole or not at all, and says where it came from."""

import csv
import json
import re
import tarfile
from pathlib import Path
from typing import Any
from uuid import UUID

import little_datasets as little
import pyarrow.parquet as pq
import pytest
from content import (
    add_generation,
    add_image,
    add_label,
    add_labeler,
    add_pair,
    add_prompt,
)
from prefloop.cli import app
from prefloop.store import IntegrityError, PairStore, PrefloopError, UsageError
from prefloop.store.exporters.config import ExportConfig
from prefloop.store.exporters.pickapic import SCHEMA
from prefloop.store.exporters.run import export_pairs
from prefloop.store.importers.config import ImportConfig
from prefloop.store.importers.formats import open_source
from prefloop.store.importers.run import import_pairs
from typer.testing import CliRunner

RUNNER = CliRunner()
_LABELS = """
    select prompt, pair_id, prompt_id, image_a, image_b, labeler, choice{more}
    from current_labels join pairs using (pair_id) join prompts using (prompt_id)
    where choice in ({choices}) order by all"""


def labels(store: PairStore, choices: str = "'a', 'b'", more: str = "") -> list[tuple]:
    return store.rows(_LABELS.format(choices=choices, more=more))


def exported(store: PairStore, out: Path, **settings: Any) -> Path:
    export_pairs(ExportConfig(output_dir=out, **settings), store)
    return out


def imported_again(out: Path, **settings: Any) -> PairStore:
    store = PairStore.create(out.parent / f"{out.name}-store")
    config = ImportConfig(source=str(out), **settings)
    import_pairs(config, open_source(config), store)
    return store


@pytest.fixture
def labelled(store: PairStore) -> PairStore:
    """12 pairs of 6 prompts; 'human:me' labels a, b, tie, skip in turn, 'scorer' has p and margins and no ties."""
    add_labeler(store, "human:me")
    add_labeler(store, "scorer", "ai")
    model = UUID(int=15)
    store.append("models", [{"model_id": model, "name": "sd15", "config": "{}"}])
    for number in range(6):
        prompt = add_prompt(store, f"=prompt | <{number}>", kind="odd", number=str(number))
        images = [add_image(store, (number * 40, 100 * place, 7)) for place in range(3)]
        add_generation(store, prompt, model, images[0])
        for place in range(2):
            pair = add_pair(store, prompt, images[place], images[place + 1])
            turn = 2 * number + place
            add_label(store, pair, "human:me", ("a", "b", "tie", "skip")[turn % 4])
            p_a = 0.125 + turn / 16
            add_label(store, pair, "scorer", "a" if p_a > 0.5 else "b", p_a=p_a, margin=abs(p_a - 0.5))
    store.ingest()
    return store


# Round trips


def test_a_pick_a_pic_export_is_imported_again_with_its_ties(labelled: PairStore, tmp_path: Path):
    out = exported(labelled, tmp_path / "out", format="pickapic", labelers=("human:me",))
    again = imported_again(out, labeler="human:me")
    everything = "'a', 'b', 'tie'"
    assert len(labels(again, everything)) == 9
    mine = [row for row in labels(labelled, everything) if row[5] == "human:me"]
    assert labels(again, everything) == mine
    ((name,),) = again.rows("select distinct name from generations join models using (model_id)")
    assert name == "sd15"


def test_a_pick_a_pic_export_has_the_schema_of_pick_a_pic(labelled: PairStore, tmp_path: Path):
    out = exported(labelled, tmp_path / "out", format="pickapic")
    rows = [row for path in sorted((out / "data").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert pq.read_schema(next((out / "data").iterdir())).equals(SCHEMA)
    assert len(rows) == 9 + 12
    for row in rows:
        assert row["label_0"] + row["label_1"] == 1
        best = {1: row["image_0_uid"], 0: row["image_1_uid"], 0.5: "tie"}[row["label_0"]]
        assert row["best_image_uid"] == best
    # 'human:me' is 0 and 'scorer' 1 by name; the three ties are the former's
    assert {row["user_id"] for row in rows if row["label_0"] == 0.5} == {0}
    of_prompt = [row for row in rows if row["caption"] == "=prompt | <0>"]  # human: a, b; scorer: two
    assert [row["num_example_per_prompt"] for row in of_prompt] == [4] * 4


def test_a_datasets_export_is_imported_again_with_labelers_probabilities_and_tags(labelled: PairStore, tmp_path: Path):
    again = imported_again(exported(labelled, tmp_path / "out", format="datasets"))
    more = ", p_a, margin, tags"
    assert len(labels(again)) == 18
    assert labels(again, more=more) == labels(labelled, more=more)


def test_an_import_says_whose_labels_it_has_read(labelled: PairStore, tmp_path: Path):
    out = exported(labelled, tmp_path / "out", format="datasets")
    store = ["--store", str(tmp_path / "again")]
    planned = RUNNER.invoke(app, ["store", "import", str(out), *store, "--dry-run"])
    assert ", labels by human:me and scorer;" in planned.stdout
    ended = RUNNER.invoke(app, ["store", "import", str(out), *store])
    assert "18 new labels by human:me and scorer;" in ended.stdout
    again = RUNNER.invoke(app, ["store", "import", str(out), *store, "--json"])
    assert json.loads(again.stdout)["labelers"] == ["human:me", "scorer"]


def test_the_datasets_library_opens_the_folder_with_images(labelled: PairStore, tmp_path: Path):
    import datasets

    out = exported(labelled, tmp_path / "out", format="datasets", labelers=("scorer",))
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    splits = dict(labelled.rows("select split, count(*) from preferences where labeler = 'scorer' group by all"))
    assert {split: len(rows) for split, rows in loaded.items()} == splits  # type: ignore[union-attr]
    row = loaded["train"][0]  # type: ignore[index]
    ((red, green, _),) = {row["chosen"].getpixel((0, 0))}
    assert (red % 40, green % 100) == (0, 0)
    assert row["chosen"].size == (8, 8)


def test_shards_are_imported_again(labelled: PairStore, tmp_path: Path):
    out = exported(labelled, tmp_path / "out", format="webdataset")
    assert labels(imported_again(out), more=", p_a, margin") == labels(labelled, more=", p_a, margin")
    with tarfile.open(out / "train-000000.tar") as shard:
        assert shard.getnames()[:3] == ["000000000.chosen.png", "000000000.rejected.png", "000000000.json"]
    first = (out / "train-000000.tar").read_bytes()
    again = exported(labelled, tmp_path / "again", format="webdataset")
    assert (again / "train-000000.tar").read_bytes() == first


def test_folders_are_imported_again(labelled: PairStore, tmp_path: Path):
    out = exported(labelled, tmp_path / "out", format="folders", labelers=("human:me",))
    mine = [row for row in labels(labelled) if row[5] == "human:me"]
    assert labels(imported_again(out, labeler="human:me")) == mine
    assert len(mine) == 6
    captions = {path.stem: path.read_text() for path in (out / "rejected").glob("*.txt")}
    assert captions == {str(pair): prompt for prompt, pair, *_ in mine}


@pytest.mark.slow(reason="writes and reads whole stores")
def test_a_jpeg_stays_the_same_to_the_byte(store: PairStore, tmp_path: Path):
    config = ImportConfig(source=str(little.hpd(tmp_path / "hpd")))
    import_pairs(config, open_source(config), store)
    for form in ("datasets", "webdataset", "folders", "simpletuner", "flow-factory", "kohya", "pickapic"):
        again = imported_again(exported(store, tmp_path / form, format=form), labeler="human:hpdv2")
        assert labels(again) == labels(store), form


# The labels alone


def test_csv_guards_formulas_and_holds_ties_and_skips(labelled: PairStore, tmp_path: Path):
    out = exported(labelled, tmp_path / "out", format="csv", labelers=("human:me",))
    with open(out / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["choice"] for row in rows) == ["a"] * 3 + ["b"] * 3 + ["skip"] * 3 + ["tie"] * 3
    assert all(row["prompt"].startswith("'=prompt") for row in rows)
    assert {path.name for path in out.iterdir()} == {"README.md", "labels.csv"}


def test_json_lines_hold_each_label_as_it_is(labelled: PairStore, tmp_path: Path):
    out = exported(labelled, tmp_path / "out", format="jsonl", where="labeler = 'scorer' and margin > 0.25")
    rows = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    # margins |turn / 16 - 6 / 16| above 4/16: turns 0, 1 and 11
    assert sorted(row["margin"] for row in rows) == [5 / 16, 5 / 16, 6 / 16]
    assert all((labelled.path / row["path_a"]).exists() for row in rows)


# What is selected


def test_where_sees_the_columns_of_preferences(labelled: PairStore, tmp_path: Path):
    where = "split = 'train' and p_chosen > 0.7 and tags->>'kind' = 'odd' and chosen <> rejected"
    expected = labelled.rows(f"select count(*) from preferences where {where}")
    out = exported(labelled, tmp_path / "out", format="jsonl", where=where)
    assert [(len((out / "labels.jsonl").read_text().splitlines()),)] == expected
    assert expected[0][0] > 0


def test_pairs_of_an_evaluation_are_not_exported(labelled: PairStore, tmp_path: Path):
    prompt = add_prompt(labelled, "held out")
    pair = add_pair(labelled, prompt, add_image(labelled, (1, 1, 1)), add_image(labelled, (2, 2, 2)), source="eval")
    add_label(labelled, pair, "human:me", "a")
    labelled.ingest()
    assert "held out" not in (exported(labelled, tmp_path / "out", format="csv") / "labels.csv").read_text()


@pytest.mark.parametrize("where", ["marg > 1", "exists (from read_csv('x'))", "; drop table pairs"])
def test_an_invalid_condition_or_one_that_reads_something_else_is_refused(
    labelled: PairStore, tmp_path: Path, where: str
):
    with pytest.raises(UsageError, match=r"--where .* cannot be used"):
        exported(labelled, tmp_path / "out", where=where)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# The card


def test_the_card_says_where_the_labels_came_from(labelled: PairStore, tmp_path: Path):
    add_labeler(labelled, "human:<b>|x", "human")
    (pair,) = labelled.rows("select pair_id from pairs order by 1 limit 1")[0]
    add_label(labelled, pair, "human:<b>|x", "a")
    labelled.ingest()
    out = exported(labelled, tmp_path / "out", format="pickapic", where="p_chosen is null or margin >= 0")
    card = (out / "README.md").read_text()
    assert card.startswith('---\ntags: ["preference"')
    assert "22 labels of 12 pairs of images for 6 prompts" in card  # 9 of human:me, 12 of scorer, 1
    assert "| human:me | human | 6 | 3 | 0 | {} |" in card
    assert "| scorer | ai | 12 | 0 | 0 | {} |" in card
    assert "| human:&lt;b>&#124;x | human | 1 | 0 | 0 | {} |" in card
    assert re.search(r"\| sd15 \| \d+ \|", card)
    assert '--format pickapic --where "p_chosen is null or margin >= 0"' in card


# Whole or not at all


def test_a_changed_image_ends_the_export_and_leaves_nothing(labelled: PairStore, tmp_path: Path):
    ((path,),) = labelled.rows("select path from image_files order by 1 limit 1")
    (labelled.path / path).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="has changed since it was stored"):
        exported(labelled, tmp_path / "out")
    (labelled.path / path).unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        exported(labelled, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_the_next_export_removes_what_a_killed_one_left(labelled: PairStore, tmp_path: Path):
    (tmp_path / ".out.99999999.tmp" / "data").mkdir(parents=True)
    exported(labelled, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]


def test_a_full_disk_is_noticed_before_anything_is_written(
    labelled: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prefloop.store.exporters.run._image_bytes", lambda *_: 10**18)
    with pytest.raises(PrefloopError, match=r"cannot write .*out \(1000000000000000000 bytes\): No space left"):
        exported(labelled, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


REFUSED = [
    ("out --format xml", 2, "unknown format 'xml'; choose from pickapic, datasets"),
    ("out --labeler nobody", 2, "unknown labeler 'nobody'; choose from human:me, scorer"),
    ("out --where margin>99", 2, "there are no labels to export where margin>99"),
    ("out --format folders", 2, "give --labeler with one of human:me, scorer"),
    (
        "out --format simpletuner",
        2,
        "the format simpletuner holds the labels of one labeler; give --labeler with one of",
    ),
    ("out --format kohya", 2, "the format kohya holds the labels of one labeler; give --labeler with one of human:me"),
    (
        "out --format kohya --push-to-hub me/pairs",
        2,
        "names folders of this machine, so it cannot be uploaded; leave out",
    ),
    ("there", 2, "there exists; name another folder"),
    ("out --push-to-hub me/pairs", 1, "hf upload me/pairs out --repo-type dataset"),
]


@pytest.mark.parametrize(("line", "code", "message"), REFUSED, ids=[line for line, _, _ in REFUSED])
def test_an_error_is_one_line_and_nothing_is_created(
    labelled: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, message: str
):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    ended = RUNNER.invoke(app, ["store", "export", *line.split(), "--store", str(labelled.path)])
    assert (ended.exit_code, ended.stdout) == (code, "")
    (printed,) = ended.stderr.splitlines()
    assert message in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "there"]


def test_the_command_writes_a_folder_and_counts_its_content(labelled: PairStore, tmp_path: Path):
    words = ["store", "export", str(tmp_path / "out"), "--labeler", "scorer", "--json", "--store", str(labelled.path)]
    ended = RUNNER.invoke(app, words)
    assert json.loads(ended.stdout) == {"labels": 12, "pairs": 12, "prompts": 6, "labelers": 1}
    assert RUNNER.invoke(app, words).exit_code == 2  # the folder exists now
