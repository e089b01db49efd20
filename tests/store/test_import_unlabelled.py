"""Folders of images without labels: each image comes in with its prompt, no pair, and nothing if an image has no caption."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from content import image_bytes
from prefloop.cli import app
from prefloop.generate.pair_config import PairConfig
from prefloop.generate.pair_stage import pair
from prefloop.relabel.annotate.annotations import Annotations
from prefloop.relabel.annotate.config import LabelConfig
from prefloop.relabel.annotate.queue import blind_pairs, pairs_to_label
from prefloop.store import PairStore, image_id
from prefloop.store.check import check
from prefloop.store.importers.config import ImportConfig
from prefloop.store.importers.formats import open_source
from prefloop.store.importers.run import import_pairs
from prefloop.store.maintenance.gc import unreferenced_images
from typer.testing import CliRunner

RUNNER = CliRunner()


def imported(store: PairStore, source: Path, **settings: Any) -> dict:
    config = ImportConfig(source=str(source), **settings)
    return import_pairs(config, open_source(config), store)


def png(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes((number, 0, 200)))
    return path


def image(number: int) -> UUID:
    return image_id(image_bytes((number, 0, 200)))


def captioned(folder: Path, captions: list[str]) -> Path:
    """Images 0.png, 1.png, … with a .txt beside each."""
    for number, text in enumerate(captions):
        png(folder / f"{number}.png", number).with_suffix(".txt").write_text(text)
    return folder


def images_of_prompts(store: PairStore) -> dict[str, list]:
    """Prompt → its images in the order of their index."""
    query = """select prompt, list(image_id order by image_index, image_id) from generations
        join prompts using (prompt_id) group by all"""
    return dict(store.rows(query))


def test_captions_beside_the_images_become_prompts_and_nothing_is_paired(store: PairStore, tmp_path: Path):
    source = captioned(tmp_path / "mine", ["a cat\n", "a dog", "a cat"])
    png(source / "more" / "3.webp", 3)  # its bytes are PNG, whatever its name says
    (source / "more" / "3.txt").write_text("a dog")
    png(source / ".hidden" / "9.png", 9)
    summary = imported(store, source)
    assert {
        name: summary[name] for name in ("format", "labeler", "images", "new_images", "new_prompts", "new_pairs")
    } == {
        "format": "images",
        "labeler": None,
        "images": 4,
        "new_images": 4,
        "new_prompts": 2,
        "new_pairs": 0,
    }
    assert images_of_prompts(store) == {"a cat": [image(0), image(2)], "a dog": [image(1), image(3)]}
    assert store.rows("select distinct image_index, seed from generations order by all") == [(0, -1), (1, -1)]
    assert store.rows("select name from models") == [("unknown",)]
    assert store.rows("select count(*) from pairs") == store.rows("select count(*) from labelers") == [(0,)]
    assert check(store) == []


def test_importing_again_adds_nothing_and_a_new_image_only_itself(store: PairStore, tmp_path: Path):
    source = captioned(tmp_path / "mine", ["a cat", "a dog"])
    imported(store, source)
    again = imported(store, source)
    assert again["images"] == 2
    assert {name: n for name, n in again.items() if name.startswith("new_") and n} == {}
    captioned(source, ["a cat", "a dog", "a cat"])
    assert {name: n for name, n in imported(store, source).items() if name.startswith("new_") and n} == {
        "new_images": 1,
        "new_generations": 1,
    }


def test_one_image_for_two_prompts_is_one_file_with_two_prompts(store: PairStore, tmp_path: Path):
    for name in ("a", "b"):
        png(tmp_path / "mine" / f"{name}.png", 7).with_suffix(".txt").write_text(f"prompt {name}")
    summary = imported(store, tmp_path / "mine")
    assert (summary["images"], summary["new_images"], summary["new_generations"]) == (2, 1, 2)
    assert images_of_prompts(store) == {"prompt a": [image(7)], "prompt b": [image(7)]}


def test_a_folder_per_prompt_is_read_when_it_is_asked_for(store: PairStore, tmp_path: Path):
    for prompt, numbers in (("a cat", (0, 1)), ("a dog, running", (2, 3, 4))):
        for number in numbers:
            png(tmp_path / "mine" / prompt / f"{number}.png", number)
    summary = imported(store, tmp_path / "mine", format="prompt-folders", model="midjourney")
    assert (summary["images"], summary["new_prompts"]) == (5, 2)
    assert images_of_prompts(store) == {
        "a cat": [image(0), image(1)],
        "a dog, running": [image(2), image(3), image(4)],
    }
    assert store.rows("select name from models") == [("midjourney",)]


def test_prompt_is_the_prompt_of_all_images(store: PairStore, tmp_path: Path):
    captioned(tmp_path / "mine", ["not this", "nor this"])
    imported(store, tmp_path / "mine", prompt="a fox")
    assert images_of_prompts(store) == {"a fox": [image(0), image(1)]}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_metadata_of_the_hubs_imagefolder_has_prompts_models_and_tags(store: PairStore, tmp_path: Path, suffix: str):
    for number in range(3):
        png(tmp_path / "mine" / "train" / f"{number}.png", number)
    rows = [
        {"file_name": "0.png", "text": "a cat, asleep", "model": "sd15", "style": "photo"},
        {"file_name": "1.png", "text": "a cat, asleep", "model": "sdxl", "style": "photo"},
        {"file_name": "2.png", "text": "a dog", "model": "", "style": "drawing"},
    ]
    lines = [json.dumps(row) for row in rows]
    if suffix == "csv":
        lines = ["file_name,text,model,style", '0.png,"a cat, asleep",sd15,photo', '1.png,"a cat, asleep",sdxl,photo']
        lines += ["2.png,a dog,,drawing"]
    (tmp_path / "mine" / "train" / f"metadata.{suffix}").write_text("\n".join(lines))
    summary = imported(store, tmp_path / "mine", map={"tags": "style"}, model="other")
    assert (summary["format"], summary["images"], summary["new_models"]) == ("images", 3, 3)
    assert images_of_prompts(store) == {"a cat, asleep": [image(0), image(1)], "a dog": [image(2)]}
    models = dict(store.rows("select image_id, name from generations join models using (model_id)"))
    assert models == {image(0): "sd15", image(1): "sdxl", image(2): "other"}
    assert dict(store.rows("select prompt, tags ->> 'style' from prompts")) == {
        "a cat, asleep": "photo",
        "a dog": "drawing",
    }


def test_map_names_the_columns_of_a_metadata_file(store: PairStore, tmp_path: Path):
    png(tmp_path / "mine" / "0.png", 0)
    row = {"file_name": "0.png", "text": "wrong", "about": "right", "made_by": "flux"}
    (tmp_path / "mine" / "metadata.jsonl").write_text(json.dumps(row))
    imported(store, tmp_path / "mine", map={"prompt": "about", "model": "made_by"})
    assert images_of_prompts(store) == {"right": [image(0)]}
    assert store.rows("select name from models") == [("flux",)]


def test_where_and_limit_select_images_and_only_those_need_a_caption(store: PairStore, tmp_path: Path):
    source = captioned(tmp_path / "mine", ["a cat", "a dog", "a cat", "a cat"])
    png(source / "9.png", 9)
    summary = imported(store, source, where="prompt = 'a cat' and image_index > 0", limit=1)
    assert summary["images"] == 1
    assert images_of_prompts(store) == {"a cat": [image(2)]}
    assert store.rows("select image_index from generations") == [(1,)]


# What cannot be imported


def refused(tmp_path: Path, *options: str, source: str = "mine") -> str:
    """What a refused import prints: one line, exit code 2, and no store."""
    ended = RUNNER.invoke(app, ["store", "import", str(tmp_path / source), "--store", str(tmp_path / "new"), *options])
    assert ended.exit_code == 2, ended.output
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()
    return ended.stderr


def test_an_image_without_a_caption_is_named_and_nothing_is_imported(tmp_path: Path):
    source = captioned(tmp_path / "mine", ["a cat", "a dog", "a cat", " \n"])
    (source / "1.txt").unlink()
    line = refused(tmp_path)
    assert "1.png has no caption, and 1 other cannot be used; write it into a .txt file" in line
    assert "metadata.jsonl" in line
    assert "--prompt" in line
    assert "--format prompt-folders" in line


def test_images_of_folders_that_have_no_captions_are_not_given_the_folders_names_unasked(tmp_path: Path):
    png(tmp_path / "mine" / "batch-1" / "0.png", 0)
    assert "batch-1/0.png has no caption; " in refused(tmp_path)
    png(tmp_path / "mine" / "1.png", 1)
    line = refused(tmp_path, "--format", "prompt-folders")
    assert "1.png has no caption; put it into a folder that is named as its prompt" in line


def test_metadata_must_list_every_image_and_only_files_that_exist(tmp_path: Path):
    for number in range(2):
        png(tmp_path / "mine" / f"{number}.png", number)
    metadata = tmp_path / "mine" / "metadata.jsonl"
    metadata.write_text(json.dumps({"file_name": "0.png", "text": "a cat"}))
    assert "1.png has no caption; " in refused(tmp_path)
    metadata.write_text("\n".join(json.dumps({"file_name": f"{n}.png", "text": "a cat"}) for n in (0, 1, 2)))
    assert "2.png does not exist; correct or remove it" in refused(tmp_path)
    metadata.write_text("\n".join(json.dumps({"file_name": f"{n}.png", "text": "a cat"}) for n in (0, 1, 1)))
    assert "1.png is listed twice" in refused(tmp_path)
    metadata.write_text(json.dumps({"file_name": "0.png", "text": "a cat"}) + "\n" + json.dumps({"text": "a dog"}))
    assert "a row has no file_name" in refused(tmp_path)


def test_no_file_outside_the_folder_is_opened(tmp_path: Path):
    png(tmp_path / "outside.png", 1)
    png(tmp_path / "mine" / "0.png", 0)
    rows = [{"file_name": "0.png", "text": "a cat"}, {"file_name": "../outside.png", "text": "a cat"}]
    (tmp_path / "mine" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "../outside.png: a path that leaves the folder" in refused(tmp_path)
    (tmp_path / "mine" / "metadata.jsonl").unlink()
    (tmp_path / "mine" / "0.txt").write_text("a cat")
    (tmp_path / "mine" / "1.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "mine" / "1.txt").write_text("a cat")
    assert "1.png: a path that leaves the folder" in refused(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--labeler human:me", "the format images has no labels; leave out --labeler"),
        ("--map prompt=about", "--map names columns, and"),
        ("--map prompt=about --prompt x", "--map names the columns of captions; leave it out with --prompt"),
        ("--where nothing=1", "--where 'nothing=1' cannot be used"),
        ("--where false", "holds no images where false"),
        ("--prompt x --format prompt-folders", "give --prompt or --format prompt-folders, not both"),
        ("--prompt x --format jsonl", "--prompt is for folders of images; leave it out for the format jsonl"),
        ("--model x --format folders", "--model is for images without labels; leave it out for the format folders"),
        ("--format image", "unknown format 'image'; choose from auto, pickapic"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(tmp_path: Path, options: str, message: str):
    captioned(tmp_path / "mine", ["a cat"])
    assert message in refused(tmp_path, *options.split())


def test_an_unreadable_image_is_excluded_and_named_like_those_of_pairs(store: PairStore, tmp_path: Path):
    source = captioned(tmp_path / "mine", ["a cat", "a cat"])
    (source / "2.png").write_bytes(b"not an image")
    (source / "2.txt").write_text("a cat")
    ended = RUNNER.invoke(app, ["store", "import", str(source), "--store", str(store.path)])
    assert ended.exit_code == 3
    assert "2.png: image" in ended.stderr
    assert "1 of 3 images cannot be used, more than --max-unreadable 0.01" in ended.stderr
    assert images_of_prompts(store) == {"a cat": [image(0), image(1)]}


def test_the_command_says_what_comes_next_and_a_dry_run_imports_nothing(tmp_path: Path):
    source, path = captioned(tmp_path / "mine", ["a cat", "a dog", "a cat"]), tmp_path / "store"
    words = ["store", "import", str(source), "--store", str(path)]
    ended = RUNNER.invoke(app, [*words, "--dry-run"])
    assert ended.stdout == "images: 3 rows, no labels; 3 of the first 3 images can be used; nothing was imported\n"
    assert not path.exists()
    ended = RUNNER.invoke(app, words)
    assert ended.stdout.splitlines() == [
        f"3 images without labels, 3 of them new, 2 new prompts; store: {path}",
        f"next: `prefloop pair --store {path}`",
    ]
    assert RUNNER.invoke(app, words).stdout.startswith("nothing to do: 3 images without labels, 0 of them new")


def test_images_without_pairs_are_not_removed_as_unreferenced(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    imported(store, captioned(tmp_path / "mine", ["a cat"]))
    monkeypatch.setattr("prefloop.store.maintenance.gc.MIN_AGE", -1.0)
    assert unreferenced_images(store) == []


# From a folder to a training pair


def test_a_folder_becomes_pairs_then_labels_then_preferences_to_train_on(tmp_path: Path):
    source, path = captioned(tmp_path / "mine", ["a cat", "a cat", "a cat", "a dog"]), tmp_path / "store"
    where = ["--store", str(path)]
    assert RUNNER.invoke(app, ["store", "import", str(source), *where]).exit_code == 0
    paired = RUNNER.invoke(app, ["pair", "--pairing", "adjacent", *where])
    # 0-1 and 1-2 of the cat; the dog has one image
    assert "4 images of 2 prompts: 2 pairs, 2 of them new" in paired.stdout

    store = PairStore.open(path)
    queue = pairs_to_label(store, LabelConfig())
    shown = blind_pairs(store, queue)
    assert {frozenset((pair.image_a, pair.image_b)) for pair in shown.values()} == {
        frozenset((image(0), image(1))),
        frozenset((image(1), image(2))),
    }
    annotations = Annotations(store, UUID(int=5))
    annotations.add_labeler("human:me")
    for identity, blind in shown.items():  # the person prefers image 1 in both
        annotations.write("human:me", identity, 0, "a" if blind.image_a == image(1) else "b", "a", 900)
    annotations.flush()
    rows = store.rows("select prompt, chosen, rejected from training_preferences where labeler = 'human:me'")
    assert sorted(rows) == sorted([("a cat", image(1), image(0)), ("a cat", image(1), image(2))])

    # a scorer labels them too: 0 is the least red image, 2 the reddest
    scored = RUNNER.invoke(app, ["relabel", "--scorer", "little_scorers:Redness", *where])
    assert scored.exit_code == 0, scored.output
    query = "select chosen, rejected from training_preferences where labeler <> 'human:me'"
    assert set(store.rows(query)) == {(image(1), image(0)), (image(2), image(1))}
    assert check(store) == []


def test_pair_takes_an_image_of_an_unknown_model_for_one_of_no_other_model(store: PairStore, tmp_path: Path):
    imported(store, captioned(tmp_path / "mine", ["a cat", "a cat"]))
    for number in (2, 3):
        png(tmp_path / "flux" / f"{number}.png", number)
        png(tmp_path / "sdxl" / f"{number + 10}.png", number + 10)
    imported(store, tmp_path / "flux", prompt="a cat", model="flux")
    imported(store, tmp_path / "sdxl", prompt="a cat", model="sdxl")
    assert pair(PairConfig(where="model is null"), store)["pairs"] == 1
    # two images of flux with two of sdxl
    assert pair(PairConfig(pairing="across-models"), store)["pairs"] == 4
    assert pair(PairConfig(), store)["pairs"] == 15
