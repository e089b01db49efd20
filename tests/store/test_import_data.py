"""Preference datasets of every format are imported once and completely, and no file outside them is opened."""

import json
import shutil
from pathlib import Path
from typing import Any

import little_datasets as little
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from content import add_labeler, image_bytes
from prefloop.cli import app
from prefloop.store import PairStore, UsageError, image_id
from prefloop.store.check import check
from prefloop.store.importers.config import ImportConfig
from prefloop.store.importers.formats import open_source
from prefloop.store.importers.run import import_pairs
from test_cli import slow_imports
from typer.testing import CliRunner

RUNNER = CliRunner()


def imported(store: PairStore, source: Path, **settings: Any) -> dict:
    config = ImportConfig(source=str(source), **settings)
    return import_pairs(config, open_source(config), store)


def preferences(store: PairStore) -> set[tuple]:
    """(prompt, chosen, rejected, labeler); both orders of a tie."""
    rows = store.rows(
        """select prompt, l.choice, image_a, image_b, labeler
        from current_labels l join pairs using (pair_id) join prompts using (prompt_id)"""
    )
    a_chosen = {(prompt, a, b, by) for prompt, choice, a, b, by in rows if choice in ("a", "tie")}
    return a_chosen | {(prompt, b, a, by) for prompt, choice, a, b, by in rows if choice in ("b", "tie")}


# Pick-a-Pic


def test_pick_a_pic_keeps_winners_ties_and_pairs_without_a_label(store: PairStore, tmp_path: Path):
    summary = imported(store, little.pickapic(tmp_path / "train.parquet"))
    # 10 rows in turn first, second, tie, first, none: 8 labels
    assert (summary["format"], summary["pairs"], summary["new_pairs"], summary["new_labels"]) == ("pickapic", 10, 10, 8)
    expected = set()
    for number in range(10):
        left, right = image_id(little.first(number)), image_id(little.second(number))
        label = little.LABELS[number % 5]
        if label in (1.0, 0.5):
            expected.add((f"prompt {number // 2}", left, right, "human:pickapic"))
        if label in (0.0, 0.5):
            expected.add((f"prompt {number // 2}", right, left, "human:pickapic"))
    assert preferences(store) == expected
    assert store.rows("select distinct source from pairs") == [("import",)]
    assert store.rows("select labeler, kind from labelers") == [("human:pickapic", "human")]
    assert store.rows("select count(*) from labels where p_a is not null") == [(0,)]
    assert check(store) == []


def test_pick_a_pic_keeps_which_model_generated_each_image(store: PairStore, tmp_path: Path):
    imported(store, little.pickapic(tmp_path / "train.parquet"))
    models = dict(store.rows("select image_id, name from generations join models using (model_id)"))
    assert models == {image_id(little.first(n)): "sd15" for n in range(10)} | {
        image_id(little.second(n)): "sdxl" for n in range(10)
    }
    # rows 0, 3, 5, 8 for sd15, 1 and 6 for sdxl, 2 and 7 tied: (4 + 1) / 8 for the first of the two by id
    ((model, n, rate, ties),) = store.rows("select model, n, win_rate, ties from win_rates")
    assert (n, ties) == (8, 2)
    assert rate == (5 / 8 if model == "sd15" else 3 / 8)


def test_importing_again_adds_nothing(store: PairStore, tmp_path: Path):
    source = little.pickapic(tmp_path / "train.parquet")
    imported(store, source)
    parts = {path.name for path in store.journal.iterdir() if "-runs-" not in path.name}
    summary = imported(store, source)
    assert summary["pairs"] == 10
    assert {name: n for name, n in summary.items() if name.startswith("new_") and n} == {}
    assert {path.name for path in store.journal.iterdir() if "-runs-" not in path.name} == parts


def test_a_row_that_says_it_has_no_label_has_none(store: PairStore, tmp_path: Path):
    rows = [row | {"has_label": False, "label_0": 1.0, "label_1": 0.0} for row in little.pickapic_rows(2)]
    summary = imported(store, little.pickapic(tmp_path / "x.parquet", rows=rows))
    assert (summary["new_pairs"], summary["new_labels"]) == (2, 0)


def test_a_pair_labelled_again_keeps_its_first_label(store: PairStore, tmp_path: Path):
    (row,) = little.pickapic_rows(1)
    opposite = row | {"label_0": 0.0, "label_1": 1.0}
    summary = imported(store, little.pickapic(tmp_path / "x.parquet", rows=[row, opposite, row]))
    assert (summary["new_labels"], summary["repeated"]) == (1, 1)
    assert preferences(store) == {("prompt 0", image_id(row["jpg_0"]), image_id(row["jpg_1"]), "human:pickapic")}
    summary = imported(store, little.pickapic(tmp_path / "y.parquet", rows=[opposite]))
    assert (summary["new_labels"], summary["repeated"]) == (0, 1)
    assert store.rows("select count(*) from labels") == [(1,)]


def test_all_shards_of_a_folder_are_read_and_limit_and_where_select_rows(store: PairStore, tmp_path: Path):
    rows = list(little.pickapic_rows(12))
    for number in range(3):
        little.pickapic(tmp_path / "data" / f"train-{number}.parquet", rows=rows[4 * number : 4 * number + 4])
    source = tmp_path / "data"
    assert imported(PairStore.create(tmp_path / "limited"), source, limit=7)["pairs"] == 7
    # ranking_id 0 … 11, every user_id % 7 == 3: rows 3 and 10
    chosen = PairStore.create(tmp_path / "chosen")
    assert imported(chosen, source, where="user_id = 3")["pairs"] == 2
    assert {prompt for (prompt,) in chosen.rows("select prompt from prompts")} == {"prompt 1", "prompt 5"}
    assert imported(store, source)["pairs"] == 12


@pytest.mark.parametrize("where", ["user_idd = 3", "exists (from read_csv('x.csv'))", "exists (from other)", "; drop"])
def test_an_invalid_condition_or_one_that_reads_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("a\n1\n")
    other = pa.table({"a": [1]})
    assert other.num_rows == 1
    with pytest.raises(UsageError, match="cannot be used"):
        open_source(ImportConfig(source=str(little.pickapic(tmp_path / "x.parquet")), where=where))


# The other formats


def test_open_image_preferences_keeps_choices_models_and_categories(store: PairStore, tmp_path: Path):
    summary = imported(store, little.preferences(tmp_path / "data" / "train.parquet").parent)
    assert (summary["format"], summary["new_labels"]) == ("preferences", 4)
    assert preferences(store) == {
        (f"prompt {n}", image_id(little.first(n)), image_id(little.second(n)), "human:open-image-preferences")
        for n in range(4)
    }
    ((tags,),) = store.rows("select distinct tags from prompts")
    assert json.loads(tags) == {"evolution": "quality", "category": "Anime", "sub_category": "Landscape"}
    assert {name for (name,) in store.rows("select name from models")} == {"flux", "sd35"}


def test_hpd_makes_pairs_of_preferences_and_ranks(store: PairStore, tmp_path: Path):
    summary = imported(store, little.hpd(tmp_path / "hpd"))
    red = [image_id(little.jpeg((n * 80, 0, 0))) for n in range(3)]
    green = [image_id(little.jpeg((0, n * 80, 0))) for n in range(3)]
    assert summary["format"] == "hpd"
    by = "human:hpdv2"
    # ranks 2, 1, 2: the middle one beats both others, which are tied
    assert preferences(store) == {
        ("a cat", red[1], red[0], by),
        ("a dog", red[1], red[2], by),
        *(("a bird", green[1], green[n], by) for n in (0, 2)),
        ("a bird", green[0], green[2], by),
        ("a bird", green[2], green[0], by),
    }
    assert store.rows("select distinct format from images") == [("jpg",)]
    assert check(store) == []


def test_incomplete_ranked_rows_are_excluded(store: PairStore, tmp_path: Path):
    source = little.hpd(tmp_path / "hpd")
    rows = [
        {"prompt": "a", "image_path": ["0.jpg", "1.jpg"], "rank": [1]},
        {"prompt": "b", "image_path": ["0.jpg"], "rank": [1]},
        {"prompt": "c", "image_path": None, "rank": [1, 2]},
        {"prompt": "d", "image_path": ["0.jpg", "gone.jpg", "1.jpg"], "rank": [1, 2, 3]},
        {"prompt": "e", "image_path": ["0.jpg", "../hpd.json"], "rank": [1, 2]},
    ]
    (source / "test.json").write_text(json.dumps(rows))
    (source / "train.json").unlink()
    summary = imported(store, source)
    assert summary["excluded"] == {
        "not one rank per image": 1,
        "fewer than two images": 2,
        "image missing": 2,  # one of the three pairs of d is complete
        "a path that leaves the folder": 1,
    }
    assert summary["pairs"] == 1


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_imagereward_makes_pairs_of_each_prompts_ranks(store: PairStore, tmp_path: Path, form: str):
    source = little.imagereward(tmp_path / "db")
    if form == "parquet":  # as the hub converts it, with the images inside
        rows = [
            {"image": {"bytes": little.first(n), "path": None}} | row for n, row in enumerate(little.imagereward_rows())
        ]
        source = tmp_path / "db.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source, row_group_size=2)
    assert imported(store, source)["format"] == "imagereward"
    one = [image_id(little.first(n)) for n in range(5)]
    ranked = [("a cat", 2, 0), ("a cat", 2, 1), ("a cat", 0, 1), ("a dog", 3, 4)]
    assert preferences(store) == {(prompt, one[i], one[j], "human:imagereward") for prompt, i, j in ranked}
    assert store.rows("select distinct tags->>'classification' from prompts") == [("Animals",)]


@pytest.mark.parametrize("names", [("winner", "loser"), ("chosen", "rejected")])
def test_folders_of_winners_and_losers_are_pairs_by_name(store: PairStore, tmp_path: Path, names: tuple[str, str]):
    source = little.folders(tmp_path / "mine", names=names)
    assert imported(store, source, labeler="human:me")["format"] == "folders"
    assert preferences(store) == {
        (f"prompt {n}", image_id(little.first(n)), image_id(little.second(n)), "human:me") for n in range(3)
    }


def test_images_without_partner_or_caption_are_excluded(store: PairStore, tmp_path: Path):
    source = little.folders(tmp_path / "mine")
    (source / "loser" / "0.png").unlink()
    (source / "winner" / "1.txt").unlink()
    summary = imported(store, source)
    assert (summary["pairs"], summary["excluded"]) == (1, {"no partner": 1, "no prompt": 1})


def test_json_lines_name_images_below_their_folder(store: PairStore, tmp_path: Path):
    assert imported(store, little.jsonl(tmp_path / "mine"))["format"] == "jsonl"
    assert preferences(store) == {
        (f"prompt {n}", image_id(little.first(n)), image_id(little.second(n)), "imported") for n in range(3)
    }


def test_columns_of_any_name_are_mapped(store: PairStore, tmp_path: Path):
    rows = [{"text": "one", "good": little.first(0), "bad": little.second(0), "who": "ann", "kind": "x", "year": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    names = {"prompt": "text", "chosen": "good", "rejected": "bad", "labeler": "who", "tags": "kind+year"}
    assert imported(store, tmp_path / "mine.parquet", map=names)["format"] == "table"
    assert preferences(store) == {("one", image_id(little.first(0)), image_id(little.second(0)), "ann")}
    assert store.rows("select tags from prompts") == [('{"kind":"x","year":"1"}',)]


def test_a_folder_that_datasets_saved_is_read(store: PairStore, tmp_path: Path):
    import datasets

    little.preferences(tmp_path / "x.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, datasets.Dataset)
    loaded.cast_column("chosen", datasets.Image()).save_to_disk(tmp_path / "saved")
    assert imported(store, tmp_path / "saved")["new_labels"] == 4


def test_a_soft_label_keeps_its_probability_on_the_right_side(store: PairStore, tmp_path: Path):
    rows = [row | {"label_0": 0.25, "label_1": 0.75} for row in little.pickapic_rows(6)]
    imported(store, little.pickapic(tmp_path / "x.parquet", rows=rows))
    assert store.rows("select distinct p_chosen from preferences") == [(0.75,)]
    assert store.rows("select count(distinct choice) from labels") == [(2,)], "both orders must occur"


# Unusable rows


def test_unusable_pairs_are_counted_by_reason_and_the_others_imported(store: PairStore, tmp_path: Path):
    rows = list(little.pickapic_rows(10))
    whole = image_bytes((1, 2, 3), 256)
    rows[0]["jpg_0"] = whole[: len(whole) // 2]
    rows[1]["jpg_1"] = b"GIF89a"
    rows[2]["jpg_0"] = None
    rows[3]["caption"] = " "
    rows[4]["caption"] = "a\x00b"
    rows[5]["jpg_1"] = rows[5]["jpg_0"]
    rows[6]["label_0"] = 7.0
    summary = imported(store, little.pickapic(tmp_path / "x.parquet", rows=rows))
    assert summary["excluded"] == {
        "image unreadable": 1,
        "image format": 1,
        "no image": 1,
        "no prompt": 1,
        "a NUL character in the prompt": 1,
        "the same image twice": 1,
        "the label is not between 0 and 1, or the margin is not a number": 1,
    }
    assert summary["pairs"] == 3
    assert "x.parquet, row 3: no image" in summary["examples"]
    assert store.rows("select count(*) from pairs") == [(3,)]
    assert check(store) == []


def test_odd_prompts_come_back_as_they_were(store: PairStore, tmp_path: Path):
    odd = ["=1+1", "[/red] x", "‮right to left", "a\r\nb", "x" * 100_000, "<script>"]
    rows = [row | {"caption": text} for row, text in zip(little.pickapic_rows(6), odd, strict=True)]
    imported(store, little.pickapic(tmp_path / "x.parquet", rows=rows))
    assert {text for (text,) in store.rows("select prompt from prompts")} == set(odd)


def test_a_path_in_a_table_is_never_opened(store: PairStore, tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(image_bytes((1, 2, 3)))
    image = {"bytes": None, "path": str(tmp_path / "secret.png")}
    summary = imported(store, little.preferences(tmp_path / "data" / "x.parquet", image=image))
    assert (summary["pairs"], summary["excluded"]) == (0, {"no image": 4})
    rows = [{"prompt": "one", "chosen": str(tmp_path / "secret.png"), "rejected": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")
    assert imported(store, tmp_path / "texts.parquet")["excluded"] == {"no image": 1}
    assert not list((store.path / "images").rglob("*.png"))


@pytest.mark.parametrize("way", ["absolute", "upwards", "link"])
def test_a_path_that_leaves_the_folder_is_never_opened(store: PairStore, tmp_path: Path, way: str):
    secret = tmp_path / "secret.png"
    secret.write_bytes(image_bytes((1, 2, 3)))
    named = {"absolute": str(secret), "upwards": "../secret.png", "link": "link.png"}[way]
    source = little.jsonl(tmp_path / "mine", [{"prompt": "one", "chosen": named, "rejected": "pictures/l0.png"}])
    (source.parent / "link.png").symlink_to(secret)
    summary = imported(store, source)
    assert summary["excluded"] == {"a path that leaves the folder": 1}
    assert not list((store.path / "images").rglob("*.png"))


def test_a_caption_that_leaves_the_folder_is_never_read(store: PairStore, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    source = little.folders(tmp_path / "mine", n=1)
    (source / "winner" / "0.txt").unlink()
    (source / "winner" / "0.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UsageError, match=r"no image in .* has a prompt"):
        imported(store, source)


def test_imported_labels_never_join_those_of_a_scorer(store: PairStore, tmp_path: Path):
    add_labeler(store, "pickscore", "ai")
    store.ingest()
    source = little.pickapic(tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="has a labeler 'pickscore' of kind ai"):
        imported(store, source, labeler="pickscore")
    assert store.rows("select count(*) from runs") == [(0,)], "refused before the run began"
    rows = [row | {"best_image_uid": "pickscore"} for row in little.pickapic_rows(2)]
    named_in_a_column = little.pickapic(tmp_path / "y.parquet", rows=rows)
    with pytest.raises(UsageError, match="has a labeler 'pickscore' of kind ai"):
        imported(store, named_in_a_column, map={"labeler": "best_image_uid"})
    assert store.rows("select count(*) from labels") == [(0,)]


# The command line


def run(*words: object, cwd: Path) -> Any:
    return RUNNER.invoke(app, ["store", "import", *map(str, words), "--store", str(cwd / "new")])


@pytest.mark.slow(reason="starts processes")
def test_the_command_imports_nothing_slow(tmp_path: Path):
    source = little.pickapic(tmp_path / "x.parquet")
    for words in (["store", "--help"], ["store", "import", "--help"], ["store", "import", source, "--store", "new"]):
        assert slow_imports(*words, cwd=tmp_path) == (0, "")


def test_too_many_unusable_pairs_end_with_3_after_the_summary(tmp_path: Path):
    rows = list(little.pickapic_rows(10))
    rows[0]["jpg_0"] = b"bad"
    source = little.pickapic(tmp_path / "x.parquet", rows=rows)
    ended = run(source, "--json", cwd=tmp_path)
    assert ended.exit_code == 3
    assert json.loads(ended.stdout)["pairs"] == 9
    assert "1 of 10 pairs cannot be used, more than --max-unreadable 0.01" in ended.stderr
    assert run(source, "--max-unreadable", 0.1, cwd=tmp_path).exit_code == 0  # 1 of 10 is not more than 0.1


def test_a_dry_run_reports_and_imports_nothing(tmp_path: Path):
    ended = run(little.pickapic(tmp_path / "x.parquet"), "--dry-run", "--json", cwd=tmp_path)
    summary = json.loads(ended.stdout)
    assert (ended.exit_code, summary["rows"], summary["usable"]) == (0, 10, 10)
    assert summary["image_bytes"] == round(sum(len(little.first(n)) + len(little.second(n)) for n in range(10)) / 20)
    assert not (tmp_path / "new").exists()


REFUSED = [
    ("gone.parquet", 1, "gone.parquet does not exist"),
    ("./gone", 1, "./gone does not exist"),
    ("x.parquet --format xml", 2, "unknown format 'xml'; choose from auto, pickapic"),
    ("x.parquet --limit 0", 2, "limit must be positive, got 0"),
    ("x.parquet --max-unreadable nan", 2, "max-unreadable must be"),
    ("x.parquet --max-unreadable 2", 2, "max-unreadable must be"),
    ("x.parquet --map prompt", 2, "--map must be OURS=THEIRS"),
    ("x.parquet --map promt=caption", 2, "unknown column in --map 'promt'; choose from prompt"),
    ("x.parquet --map prompt=captoin", 2, "no column 'captoin'; the columns are are_different"),
    ("x.parquet --where user_id=99", 2, "holds no pairs where user_id=99"),
    ("x.parquet --where user_idd=9", 2, "--where 'user_idd=9' cannot be used"),
    ("x.parquet --format folders", 2, "has no folders good and bad; put the images into"),
    (
        "x.parquet --format simpletuner",
        2,
        "has no JSON file with a dataset whose conditioning_type is reference_strict",
    ),
    ("x.parquet --format kohya", 2, "has no folders w and l"),
    ("x.parquet --format flow-factory", 2, "holds no rows in the format flow-factory"),
    ("x.parquet --format webdataset", 2, "holds no rows in the format webdataset"),
    ("torn.parquet", 1, "torn.parquet cannot be read"),
    ("empty", 2, "unknown format of empty"),
    ("other.parquet", 2, "give --map prompt=COLUMN and so on; the columns are a"),
    ("bad.jsonl", 2, "bad.jsonl, line 2 is not valid JSON"),
    ("store", 2, "store is a store; use `prefloop store merge store`"),
    ("owner/name", 1, "hf download owner/name --repo-type dataset --local-dir name"),
]


@pytest.mark.parametrize(("line", "code", "message"), REFUSED, ids=[line for line, _, _ in REFUSED])
def test_an_error_is_one_line_and_no_store_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, message: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    little.pickapic(Path("x.parquet"))
    Path("torn.parquet").write_bytes(Path("x.parquet").read_bytes()[:-20])
    Path("empty").mkdir()
    PairStore.create("store")
    Path("bad.jsonl").write_text('{"prompt": "one"}\n{"prompt"\n')
    pq.write_table(pa.table({"a": [1]}), "other.parquet")
    ended = run(*line.split(), cwd=tmp_path)
    assert (ended.exit_code, ended.stdout) == (code, ""), ended.stderr
    (line_printed,) = ended.stderr.splitlines()
    assert line_printed.startswith("prefloop: ")
    assert message in line_printed
    assert not (tmp_path / "new").exists()


def test_a_dataset_in_the_cache_of_the_hub_needs_no_network(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    repository, commit = cache / "datasets--owner--pairs", "0" * 40
    little.pickapic(repository / "snapshots" / commit / "data" / "train.parquet")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert imported(store, Path("owner/pairs"))["new_pairs"] == 10
    shutil.rmtree(repository)
