"""Exports for SimpleTuner, Flow-Factory and kohya's scripts have exactly the layout that those read, and come back as labels."""

import json
import tomllib
from pathlib import Path
from typing import Any
from uuid import UUID

import little_datasets as little
import pytest
from content import add_image, add_label, add_labeler, add_pair, add_prompt, image_bytes
from prefloop.cli import app
from prefloop.store import PairStore, UsageError, image_id
from prefloop.store.check import check
from prefloop.store.exporters.config import ExportConfig
from prefloop.store.exporters.run import export_pairs
from prefloop.store.importers.config import ImportConfig
from prefloop.store.importers.formats import open_source
from prefloop.store.importers.run import import_pairs
from typer.testing import CliRunner

RUNNER = CliRunner()
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def imported(store: PairStore, source: Path, **settings: Any) -> dict:
    config = ImportConfig(source=str(source), **settings)
    return import_pairs(config, open_source(config), store)


def exported(store: PairStore, out: Path, form: str, **settings: Any) -> Path:
    export_pairs(ExportConfig(output_dir=out, format=form, **settings), store)
    return out


def preferences(store: PairStore, more: str = "") -> list[tuple]:
    """(prompt, chosen, rejected), and more columns, in order."""
    return store.rows(f"select prompt, chosen, rejected{more} from preferences order by all")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def add_labelled_pair(store: PairStore, text: str, chosen: UUID, rejected: UUID, **label: Any) -> UUID:
    """A pair whose label by 'human:me' prefers the first of two images."""
    pair = add_pair(store, add_prompt(store, text, kind="odd"), chosen, rejected)
    # image_a is the smaller id
    add_label(store, pair, "human:me", "a" if chosen < rejected else "b", **label)
    return pair


@pytest.fixture
def two_pairs(store: PairStore) -> PairStore:
    """'a cat': red over green; 'a dog': green over blue; by 'human:me'. So one image is chosen and rejected."""
    add_labeler(store, "human:me")
    images = [add_image(store, colour) for colour in (RED, GREEN, BLUE)]
    add_labelled_pair(store, "a cat", images[0], images[1])
    add_labelled_pair(store, "a dog", images[1], images[2])
    store.ingest()
    return store


EXPECTED = [
    ("a cat", image_id(image_bytes(RED)), image_id(image_bytes(GREEN))),
    ("a dog", image_id(image_bytes(GREEN)), image_id(image_bytes(BLUE))),
]


def pair_ids(store: PairStore) -> list[str]:
    return [
        str(pair) for (pair,) in store.rows("select pair_id from pairs join prompts using (prompt_id) order by prompt")
    ]


@pytest.mark.parametrize("form", ["simpletuner", "flow-factory", "kohya"])
def test_an_export_is_detected_and_restores_the_labels_even_where_it_was_moved(
    two_pairs: PairStore, tmp_path: Path, form: str
):
    exported(two_pairs, tmp_path / "out", form).rename(tmp_path / "moved")
    again = PairStore.create(tmp_path / "again")
    summary = imported(again, tmp_path / "moved", labeler="human:me")
    assert (summary["format"], summary["new_labels"], summary["excluded"]) == (form, 2, {})
    assert preferences(again, ", labeler") == [(*row, "human:me") for row in EXPECTED]
    assert pair_ids(again) == pair_ids(two_pairs)
    assert check(again) == []


# SimpleTuner


def test_simpletuner_finds_equal_names_and_captions_in_the_folders_of_its_configuration(
    two_pairs: PairStore, tmp_path: Path
):
    out = exported(two_pairs, tmp_path / "out", "simpletuner")
    cat, dog = pair_ids(two_pairs)
    names = {f"{pair}.{extension}" for pair in (cat, dog) for extension in ("png", "txt")}
    both = {f"{side}/{name}" for side in ("chosen", "rejected") for name in names}
    assert files(out) == both | {"README.md", "multidatabackend.json"}
    assert (out / "chosen" / f"{dog}.png").read_bytes() == image_bytes(GREEN)
    assert (out / "rejected" / f"{dog}.png").read_bytes() == image_bytes(BLUE)
    assert {(out / side / f"{dog}.txt").read_text() for side in ("chosen", "rejected")} == {"a dog"}
    assert json.loads((out / "multidatabackend.json").read_text()) == [
        {
            "id": "out-chosen",
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": str(tmp_path / "out" / "chosen"),
            "caption_strategy": "textfile",
            "disable_multiline_split": True,
            "conditioning_data": ["out-rejected"],
        },
        {
            "id": "out-rejected",
            "type": "local",
            "dataset_type": "conditioning",
            "conditioning_type": "reference_strict",
            "instance_data_dir": str(tmp_path / "out" / "rejected"),
            "source_dataset_id": "out-chosen",
            "caption_strategy": "textfile",
            "disable_multiline_split": True,
        },
    ]


def test_the_configuration_names_the_folder_absolutely_though_out_is_relative(
    two_pairs: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    exported(two_pairs, Path("out"), "simpletuner")
    exported(two_pairs, Path("out-kohya"), "kohya")
    chosen, rejected = json.loads(Path("out/multidatabackend.json").read_text())
    assert chosen["instance_data_dir"] == str(tmp_path / "out" / "chosen")
    assert rejected["instance_data_dir"] == str(tmp_path / "out" / "rejected")
    (dataset,) = tomllib.loads(Path("out-kohya/dataset_config.toml").read_text())["datasets"]
    assert dataset["subsets"][0]["image_dir"] == str(tmp_path / "out-kohya")


@pytest.mark.parametrize(("form", "sides"), [("simpletuner", ("chosen", "rejected")), ("kohya", ("w", "l"))])
def test_images_of_two_formats_get_one_name_and_keep_their_bytes(
    store: PairStore, tmp_path: Path, form: str, sides: tuple[str, str]
):
    add_labeler(store, "human:me")
    row = store.write_image(little.jpeg(RED), 8, 8)
    store.append("images", [row])
    pair = add_labelled_pair(store, "a cat", row["image_id"], add_image(store, GREEN))
    store.ingest()
    out = exported(store, tmp_path / "out", form)
    # both trainers look for the rejected image under the whole name of the chosen one
    assert {path.name for side in sides for path in (out / side).glob("*.[jp]*g")} == {f"{pair}.jpg"}
    assert (out / sides[0] / f"{pair}.jpg").read_bytes() == little.jpeg(RED)
    assert (out / sides[1] / f"{pair}.jpg").read_bytes() == image_bytes(GREEN)
    again = PairStore.create(tmp_path / "again")
    imported(again, out)
    assert preferences(again) == [("a cat", image_id(little.jpeg(RED)), image_id(image_bytes(GREEN)))]


def test_a_prompt_of_several_lines_comes_back_from_simpletuner_as_it_was(store: PairStore, tmp_path: Path):
    add_labeler(store, "human:me")
    add_labelled_pair(store, "a\r\ncat", add_image(store, RED), add_image(store, GREEN))
    store.ingest()
    again = PairStore.create(tmp_path / "again")
    imported(again, exported(store, tmp_path / "out", "simpletuner"))
    assert preferences(again) == preferences(store)
    assert len(preferences(again)) == 1


def test_simpletuner_s_own_example_is_read_from_the_folders_beside_it(store: PairStore, tmp_path: Path):
    folder = little.simpletuner(tmp_path / "mine")
    summary = imported(store, folder)
    assert (summary["format"], summary["labeler"], summary["excluded"]) == ("simpletuner", "imported", {})
    expected = [(f"prompt {n}", image_id(little.first(n)), image_id(little.second(n))) for n in range(2)]
    assert preferences(store) == expected
    assert imported(store, folder / "dataloader.json")["pairs"] == 2, "the configuration itself is a source too"


def test_each_line_of_a_simpletuner_caption_is_a_prompt_unless_it_says_otherwise(store: PairStore, tmp_path: Path):
    for place, changes in enumerate(({}, {"disable_multiline_split": True})):
        folder = little.simpletuner(tmp_path / str(place), n=1, **changes)
        (folder / "win" / "0.txt").write_text("a cat\n\n a kitten \n")
        assert imported(store, folder)["pairs"] == (2, 1)[place]
    assert [row[0] for row in preferences(store)] == ["a cat", "a cat\n\n a kitten ", "a kitten"]


def test_simpletuner_pairs_files_by_their_path_and_leaves_none_out_silently(store: PairStore, tmp_path: Path):
    folder = little.simpletuner(tmp_path / "mine", n=2, caption_strategy="instanceprompt", instance_prompt="a poster")
    for side in ("win", "lose"):
        (folder / side / "deep").mkdir()
        (folder / side / "0.png").rename(folder / side / "deep" / "0.png")
    (folder / "lose" / "1.png").rename(folder / "lose" / "1.jpg")  # SimpleTuner would not find it either
    summary = imported(store, folder)
    assert preferences(store) == [("a poster", image_id(little.first(0)), image_id(little.second(0)))]
    assert summary["excluded"] == {"no image": 2}


@pytest.mark.parametrize("way", ["absolute", "upwards", "link"])
def test_a_simpletuner_folder_outside_is_refused(store: PairStore, tmp_path: Path, way: str):
    outside = little.folders(tmp_path / "outside", 1, ("secret", "other")) / "secret"
    named = {"absolute": str(outside), "upwards": "../outside/secret", "link": "link"}[way]
    folder = little.simpletuner(tmp_path / "mine", n=1, instance_data_dir=named)
    (folder / "link").symlink_to(outside)
    with pytest.raises(
        UsageError, match=r"instance_data_dir '.*' of 'preferred' is not a folder below .*mine; copy it"
    ):
        imported(store, folder)
    assert not list((store.path / "images").rglob("*.png"))


@pytest.mark.parametrize("side", ["win", "lose"])
def test_a_link_out_of_a_simpletuner_folder_is_never_followed(store: PairStore, tmp_path: Path, side: str):
    (tmp_path / "secret.png").write_bytes(image_bytes(RED))
    folder = little.simpletuner(tmp_path / "mine", n=1)
    (folder / side / "0.png").unlink()
    (folder / side / "0.png").symlink_to(tmp_path / "secret.png")
    assert imported(store, folder)["excluded"] == {"a path that leaves the folder": 1}


UNUSABLE = [
    ({"conditioning_data": [], "id": "other"}, "no dataset has conditioning_data 'rejected'; add it"),
    ({"disabled": True}, "no dataset has conditioning_data 'rejected'; add it"),
    ({"caption_strategy": "parquet"}, "not 'parquet'; write a .txt beside each image"),
    ({"instance_data_dir": None}, "instance_data_dir None of 'preferred' is not a folder"),
    ({"instance_data_dir": "a\x00b"}, "is not a folder below"),
]


@pytest.mark.parametrize(("changes", "message"), UNUSABLE, ids=[message for _, message in UNUSABLE])
def test_a_simpletuner_configuration_that_cannot_be_read_is_one_line_with_its_cure(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    folder = little.simpletuner(tmp_path / "mine", **changes)
    ended = RUNNER.invoke(app, ["store", "import", str(folder), "--store", str(tmp_path / "new")])
    (printed,) = ended.stderr.splitlines()
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert message in printed
    assert not (tmp_path / "new").exists()


# kohya's scripts


def test_kohya_s_scripts_find_w_and_l_with_equal_names_and_captions(two_pairs: PairStore, tmp_path: Path):
    out = exported(two_pairs, tmp_path / "out", "kohya")
    cat, dog = pair_ids(two_pairs)
    names = {f"{pair}.{extension}" for pair in (cat, dog) for extension in ("png", "caption")}
    assert files(out) == {f"{side}/{name}" for side in "wl" for name in names} | {"README.md", "dataset_config.toml"}
    assert (out / "w" / f"{cat}.png").read_bytes() == image_bytes(RED)
    assert (out / "l" / f"{cat}.png").read_bytes() == image_bytes(GREEN)
    assert {(out / side / f"{cat}.caption").read_text() for side in "wl"} == {"a cat"}
    subset = {"image_dir": str(tmp_path / "out"), "caption_extension": ".caption", "preference": True}
    assert tomllib.loads((out / "dataset_config.toml").read_text()) == {"datasets": [{"subsets": [subset]}]}


def test_a_prompt_that_kohya_would_cut_is_refused_with_a_condition_that_excludes_it(
    two_pairs: PairStore, tmp_path: Path
):
    add_labelled_pair(two_pairs, "a\ncow", add_image(two_pairs, (1, 1, 1)), add_image(two_pairs, (2, 2, 2)))
    add_labelled_pair(two_pairs, "a\rhen", add_image(two_pairs, (3, 1, 1)), add_image(two_pairs, (4, 2, 2)))
    two_pairs.ingest()
    with pytest.raises(
        UsageError, match="has several lines, and the trainers of the format kohya read only"
    ) as refused:
        exported(two_pairs, tmp_path / "out", "kohya")
    assert not (tmp_path / "out").exists()
    cure = str(refused.value).split('--where "')[1].removesuffix('"')
    out = exported(two_pairs, tmp_path / "out", "kohya", where=cure)
    assert {path.stem for path in (out / "w").iterdir()} == {
        str(pair)
        for (pair,) in two_pairs.rows(
            "select pair_id from pairs join prompts using (prompt_id) where prompt like 'a ___'"
        )
    }


def test_kohya_s_subsets_are_read_with_the_line_that_is_trained_on(store: PairStore, tmp_path: Path):
    folder = little.kohya(tmp_path / "mine", n=1)
    (folder / "2_dogs" / "w" / "1.caption").unlink()
    for side in "wl":
        (folder / "2_dogs" / side / "1.caption").unlink(missing_ok=True)
        (folder / "2_dogs" / side / "1.txt").write_text("from a text file")
    summary = imported(store, folder)
    assert (summary["format"], summary["excluded"]) == ("kohya", {})
    assert preferences(store) == [
        ("1_cats 0", image_id(little.first(0)), image_id(little.second(0))),
        ("from a text file", image_id(little.first(1)), image_id(little.second(1))),
    ]
    assert imported(store, folder / "1_cats")["format"] == "kohya"


def test_kohya_pairs_without_a_partner_or_with_a_link_out_are_excluded(store: PairStore, tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(image_bytes(RED))
    (tmp_path / "secret.txt").write_text("secret")
    folder = little.kohya(tmp_path / "mine", n=3) / "1_cats"
    (folder / "l" / "0.png").unlink()
    (folder / "w" / "1.png").unlink()
    (folder / "w" / "1.png").symlink_to(tmp_path / "secret.png")
    for side in "wl":
        (folder / side / "2.caption").unlink()
        (folder / side / "2.caption").symlink_to(tmp_path / "secret.txt")
    config = ImportConfig(source=str(folder))
    with pytest.raises(UsageError, match="holds no pairs where false"):
        open_source(ImportConfig(source=str(folder), where="false"))
    summary = import_pairs(config, open_source(config), store)
    assert summary["excluded"] == {"no image": 1, "a path that leaves the folder": 1, "no prompt": 1}


# Flow-Factory


def test_flow_factory_gets_a_record_for_each_label_and_each_image_once(store: PairStore, tmp_path: Path):
    add_labeler(store, "human:me")
    red, green, blue = (add_image(store, colour) for colour in (RED, GREEN, BLUE))
    pair = add_labelled_pair(store, "a \u202ecat\n", red, green, p_a=0.75 if red < green else 0.25, margin=0.5)
    add_labelled_pair(store, "a dog", green, blue)
    store.ingest()
    out = exported(store, tmp_path / "out", "flow-factory")
    assert files(out) == {"README.md", "train.jsonl", *(f"images/{image}.png" for image in (red, green, blue))}
    assert (out / f"images/{blue}.png").read_bytes() == image_bytes(BLUE)
    lines = (out / "train.jsonl").read_text("utf-8").split("\n")
    assert (len(lines), lines[-1]) == (3, ""), "a blank line is refused there"
    assert "\u202e" not in "".join(lines), "it would turn the terminal's text around"
    (record,) = [record for record in map(json.loads, lines[:-1]) if "cat" in record["input"]["prompt"]]
    (split,) = store.rows("select split from prompts where prompt like '%cat%'")[0]
    assert record == {
        "schema_version": 2,
        "input": {"prompt": "a \u202ecat\n", "media": []},
        "supervision": {
            "type": "preference",
            "chosen": {"media": [{"type": "image", "path": f"images/{red}.png"}]},
            "rejected": {"media": [{"type": "image", "path": f"images/{green}.png"}]},
        },
        "metadata": {
            "pair_id": str(pair),
            "labeler": "human:me",
            "margin": 0.5,
            "p_chosen": 0.75,
            "tags": {"kind": "odd"},
            "split": split,
        },
    }


def test_a_flow_factory_export_restores_labelers_probabilities_margins_and_tags(two_pairs: PairStore, tmp_path: Path):
    add_labeler(two_pairs, "scorer", "ai")
    for number, (pair,) in enumerate(two_pairs.rows("select pair_id from pairs order by 1")):
        add_label(two_pairs, pair, "scorer", "b", p_a=0.125 * number, margin=0.5 + number)
    two_pairs.ingest()
    again = PairStore.create(tmp_path / "again")
    imported(again, exported(two_pairs, tmp_path / "out", "flow-factory"))
    more = ", labeler, p_chosen, margin, tags"
    assert len(preferences(again)) == 4
    assert preferences(again, more) == preferences(two_pairs, more)


def test_flow_factory_s_own_example_is_read_and_prompts_for_evaluation_are_not(store: PairStore, tmp_path: Path):
    folder = little.flow_factory(tmp_path / "mine")
    summary = imported(store, folder)
    assert (summary["format"], summary["labeler"], summary["excluded"]) == ("flow-factory", "imported", {})
    expected = [(f"poster {n}", image_id(little.first(n)), image_id(little.second(n))) for n in range(3)]
    assert preferences(store) == expected
    assert imported(store, folder / "train.jsonl")["format"] == "flow-factory"


def test_unusable_flow_factory_records_are_counted_by_reason(store: PairStore, tmp_path: Path):
    records = [little.flow_factory_record(0) for _ in range(10)]
    source = [{"type": "image", "path": "pictures/w1.png"}]
    records[1]["schema_version"] = 1
    records[2]["supervision"] = {"type": "demonstration", "target": {"media": source}}
    records[3]["input"]["media"] = source
    records[4]["supervision"]["chosen"]["media"] *= 2
    records[5]["supervision"]["rejected"]["media"] = [{"type": "video", "path": "pictures/l0.png"}]
    records[6]["input"] = None
    records[7]["metadata"] = {"p_chosen": 7}
    records[8]["metadata"] = {"margin": "wide"}
    records[9]["supervision"]["chosen"]["media"][0]["path"] = "a\x00b"
    summary = imported(store, little.flow_factory(tmp_path / "mine", records))
    assert summary["pairs"] == 1
    assert summary["excluded"] == {
        "schema_version is not 2": 1,
        "no preference": 1,
        "media beside the prompt": 1,
        "not one image on each side": 2,
        "no prompt": 1,
        "the label is not between 0 and 1, or the margin is not a number": 2,
        "no image": 1,
    }
    assert "train.jsonl, row 4: media beside the prompt" in summary["examples"]


@pytest.mark.parametrize("way", ["absolute", "upwards", "link"])
def test_a_flow_factory_path_that_leaves_the_folder_is_never_opened(store: PairStore, tmp_path: Path, way: str):
    secret = tmp_path / "secret.png"
    secret.write_bytes(image_bytes(RED))
    record = little.flow_factory_record(0)
    named = {"absolute": str(secret), "upwards": "../secret.png", "link": "link.png"}[way]
    record["supervision"]["chosen"]["media"][0]["path"] = named
    folder = little.flow_factory(tmp_path / "mine", [record])
    (folder / "link.png").symlink_to(secret)
    assert imported(store, folder)["excluded"] == {"a path that leaves the folder": 1}
    assert not list((store.path / "images").rglob("*.png"))
