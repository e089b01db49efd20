"""A folder of good and a folder of bad images becomes pairs: by file name, or all with all that have the same prompt."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from content import image_bytes
from prefloop.cli import app
from prefloop.core.ids import prompt_id, split_of
from prefloop.store import PairStore, image_id
from prefloop.store.check import check
from prefloop.store.importers.config import ImportConfig
from prefloop.store.importers.folders import balanced
from prefloop.store.importers.formats import open_source
from prefloop.store.importers.run import import_pairs
from prefloop.train import TrainConfig
from prefloop.train.pairs import select_pairs
from typer.testing import CliRunner

RUNNER = CliRunner()
GOOD, BAD = 0, 255


def imported(store: PairStore, source: Path, **settings: Any) -> dict:
    config = ImportConfig(source=str(source), **settings)
    return import_pairs(config, open_source(config), store)


def png(path: Path, number: int, side: int, prompt: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes((number, 100, side)))
    if prompt is not None:
        path.with_suffix(".txt").write_text(f"{prompt}\n")


def image(number: int, side: int) -> UUID:
    return image_id(image_bytes((number, 100, side)))


def two_folders(
    folder: Path,
    good: Mapping[str, str | None],
    bad: Mapping[str, str | None],
    names: tuple[str, str] = ("good", "bad"),
) -> Path:
    """File name → prompt for each side; the images are numbered."""
    for name, side, files in ((names[0], GOOD, good), (names[1], BAD, bad)):
        for number, (file, prompt) in enumerate(files.items()):
            png(folder / name / f"{file}.png", number, side, prompt)
    return folder


def chosen_rejected(store: PairStore) -> set[tuple]:
    return set(store.rows("select prompt, chosen, rejected from preferences"))


def pairs(*rows: tuple[str, int, int]) -> set[tuple]:
    return {(prompt, image(good, GOOD), image(bad, BAD)) for prompt, good, bad in rows}


@pytest.mark.parametrize("names", [("good", "bad"), ("Good", "BAD")])
def test_good_and_bad_images_with_equal_names_are_pairs(store: PairStore, tmp_path: Path, names: tuple[str, str]):
    source = two_folders(tmp_path / "mine", {"x": "a cat", "y": "a dog"}, {"x": None, "y": None}, names)
    summary = imported(store, source)
    assert (summary["format"], summary["labeler"], summary["pairs"], summary["excluded"]) == (
        "folders",
        "imported",
        2,
        {},
    )
    assert chosen_rejected(store) == pairs(("a cat", 0, 0), ("a dog", 1, 1))
    assert check(store) == []


def test_images_with_other_names_are_paired_with_all_of_their_prompt(store: PairStore, tmp_path: Path):
    good = {"a": "a cat", "b": "a cat", "c": "a dog"}
    bad = {"d": "a cat", "e": "a dog", "f": "a cat"}
    assert imported(store, two_folders(tmp_path / "mine", good, bad))["pairs"] == 5
    cats = [("a cat", one, other) for one in (0, 1) for other in (0, 2)]
    assert chosen_rejected(store) == pairs(*cats, ("a dog", 2, 1))


def test_one_prompt_for_all_needs_no_captions_and_replaces_them(store: PairStore, tmp_path: Path):
    source = two_folders(tmp_path / "mine", {"a": "other", "b": None}, {"d": None, "e": None, "f": None})
    assert imported(store, source, prompt="a poster")["pairs"] == 6
    assert chosen_rejected(store) == pairs(*(("a poster", one, other) for one in (0, 1) for other in (0, 1, 2)))


def test_equal_numbers_of_different_prompts_are_not_taken_for_partners(store: PairStore, tmp_path: Path):
    good, bad = {"1": "a cat", "2": "a dog"}, {"1": "a dog", "2": "a cat"}
    imported(store, two_folders(tmp_path / "mine", good, bad))
    assert chosen_rejected(store) == pairs(("a cat", 0, 1), ("a dog", 1, 0))


def test_a_few_equal_names_are_a_coincidence_unless_pairing_by_name_is_asked_for(tmp_path: Path):
    # 2 of 6 images have a partner with their name
    good, bad = dict.fromkeys("123", "a cat"), dict.fromkeys("345", "a cat")
    source = two_folders(tmp_path / "mine", good, bad)
    assert imported(PairStore.create(tmp_path / "all"), source)["pairs"] == 9
    by_name = imported(PairStore.create(tmp_path / "by-name"), source, pairing="name")
    assert (by_name["pairs"], by_name["excluded"]) == (1, {"no partner": 4})
    (example,) = by_name["examples"]
    assert example == "1: no partner"


def test_a_file_with_captions_gives_the_prompts_of_both_folders(store: PairStore, tmp_path: Path):
    source = two_folders(tmp_path / "mine", {"a": None, "b": None}, {"a": None, "b": None})
    rows = [{"file_name": f"{side}/{name}.png", "about": f"photo {name}"} for side in ("good", "bad") for name in "ab"]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    imported(store, source, map={"prompt": "about"})
    assert chosen_rejected(store) == pairs(("photo a", 0, 0), ("photo b", 1, 1))


def test_folders_of_any_name_are_given_by_map_and_are_read_with_their_subfolders(store: PairStore, tmp_path: Path):
    source = two_folders(tmp_path / "mine", {"s/x": "a cat"}, {"s/x": "a cat"}, ("keep", "drop"))
    two_folders(source, {"ignored": "a cat"}, {"ignored": "a cat"})
    png(source / "keep" / ".trash" / "y.png", 9, 9, "a cat")
    imported(store, source, map={"chosen": "keep", "rejected": "drop"})
    assert chosen_rejected(store) == pairs(("a cat", 0, 0))


def test_at_most_max_pairs_of_a_prompt_in_which_every_image_occurs_equally_often(tmp_path: Path):
    good, bad = {f"g{n}": "a cat" for n in range(6)}, {f"b{n}": "a cat" for n in range(4)}
    source = two_folders(tmp_path / "mine", good, bad)
    found = {}
    for seed in (0, 1):
        store = PairStore.create(tmp_path / f"store-{seed}")
        assert imported(store, source, pairs_per_prompt=12, seed=seed)["pairs"] == 12
        found[seed] = chosen_rejected(store)
        # 12 pairs of 6 good images, twice each, and 4 bad ones, three times each
        assert set(Counter(row[1] for row in found[seed]).values()) == {2}
        assert set(Counter(row[2] for row in found[seed]).values()) == {3}
        again = imported(store, source, pairs_per_prompt=12, seed=seed)
        assert (again["pairs"], again["new_pairs"]) == (12, 0)
    assert found[0] != found[1]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (4, 6), (7, 3), (2, 9), (6, 4)])
def test_all_pairs_come_once_and_balanced_wherever_the_list_ends(n: int, m: int):
    order = list(balanced(n, m, random.Random(0)))
    assert sorted(order) == [(one, other) for one in range(n) for other in range(m)]
    for end in range(1, len(order) + 1):
        for side, size in ((0, n), (1, m)):
            counts = Counter(pair[side] for pair in order[:end])
            occurrences = [counts[place] for place in range(size)]
            assert max(occurrences) - min(occurrences) <= 1


def refused(tmp_path: Path, source: Path, *options: str) -> str:
    """The one line with which the command ends, before a store is created."""
    ended = RUNNER.invoke(app, ["store", "import", str(source), "--store", str(tmp_path / "new"), *options])
    assert (ended.exit_code, ended.stdout) == (2, ""), ended.output
    assert not (tmp_path / "new").exists()
    (line,) = ended.stderr.splitlines()
    return line


def test_errors_name_the_layout_that_is_expected(tmp_path: Path):
    png(tmp_path / "half" / "good" / "a.png", 1, GOOD)
    for options in ((), ("--prompt", "a cat")):
        line = refused(tmp_path, tmp_path / "half", *options)
        assert "has a folder good but no folder bad; put the images into" in line
        assert "half/good" in line
        assert "half/bad" in line
        assert "with a .txt beside each that holds its prompt, or give --prompt" in line
    line = refused(tmp_path, tmp_path / "half", "--map", "chosen=good", "--map", "rejected=worse")
    assert "has no folders good and worse; put the images into" in line
    (tmp_path / "half" / "bad").mkdir()
    assert "bad holds no images (.png" in refused(tmp_path, tmp_path / "half")


@pytest.mark.parametrize(
    ("good", "bad", "options", "message"),
    [
        (
            None,
            None,
            (),
            "has a prompt; put it into a .txt file with the image's name beside the image, or give --prompt",
        ),
        ("a cat", "a dog", (), "no prompt is in both good and bad; give --prompt, one for all images"),
        ("a cat", "a cat", ("--pairing", "name"), "no file name is in both good and bad; give --pairing all"),
        ("a cat", "a cat", ("--pairing", "best"), "unknown pairing 'best'; choose from auto, name, all"),
        ("a cat", "a cat", ("--pairs-per-prompt", "0"), "pairs-per-prompt must be positive, got 0"),
        ("a cat", "a cat", ("--prompt", " "), "--prompt cannot be used: no prompt"),
        ("a cat", "a cat", ("--prompt", "a", "--map", "prompt=b"), "leave it out with --prompt"),
        ("a cat", "a cat", ("--model", "x"), "--model is for images without labels"),
        ("a cat", "a cat", ("--format", "images", "--pairs-per-prompt", "3"), "--pairs-per-prompt is for two folders"),
    ],
)
def test_what_cannot_be_paired_is_refused_with_the_cure(
    tmp_path: Path, good: str | None, bad: str | None, options: tuple[str, ...], message: str
):
    source = two_folders(tmp_path / "mine", {"a": good}, {"b": bad})
    assert message in refused(tmp_path, source, *options)


def test_two_images_of_one_name_in_a_folder_are_not_paired_by_it(store: PairStore, tmp_path: Path):
    source = two_folders(tmp_path / "mine", {"a": "a cat"}, {"a": "a cat"})
    png(source / "good" / "a.webp", 1, GOOD)
    assert "have the same name; rename one" in refused(tmp_path, source, "--pairing", "name")
    imported(store, source)
    assert chosen_rejected(store) == pairs(("a cat", 0, 0), ("a cat", 1, 0))


def test_a_prompt_of_all_that_would_be_held_out_is_refused_and_an_altered_one_trains(store: PairStore, tmp_path: Path):
    source = two_folders(tmp_path / "mine", {"a": None}, {"b": None})
    held_out = next(text for n in range(1000) if split_of(prompt_id(text := f"prompt {n}")) != "train")
    assert "would be held out for validation" in refused(tmp_path, source, "--prompt", held_out)
    assert split_of(prompt_id(f"{held_out}.")) == "train"
    imported(store, source, prompt=f"{held_out}.")
    config = TrainConfig(output_dir="x", labelers=("imported",))
    assert [pair.chosen for pair in select_pairs(store, config).train] == [image(0, GOOD)]


def test_no_image_or_caption_outside_the_folder_is_read(store: PairStore, tmp_path: Path):
    png(tmp_path / "outside.png", 5, 5, "secret")
    source = two_folders(tmp_path / "mine", {"a": "a cat", "b": None}, {"a": None, "b": None})
    (source / "good" / "b.txt").symlink_to(tmp_path / "outside.txt")
    (source / "bad" / "a.png").unlink()
    (source / "bad" / "a.png").symlink_to(tmp_path / "outside.png")
    summary = imported(store, source)
    assert summary["excluded"] == {"a path that leaves the folder": 1, "no prompt": 1}
    assert chosen_rejected(store) == set()


def test_the_command_says_how_to_train_on_what_was_imported(tmp_path: Path):
    source = two_folders(tmp_path / "mine", {"a": "a cat"}, {"b": "a cat"})
    words = ["store", "import", str(source), "--store", str(tmp_path / "s"), "--labeler", "my taste"]
    dry = RUNNER.invoke(app, [*words, "--dry-run"])
    assert "folders: 1 row, labels by my taste; 1 of the first 1 pair can be used" in dry.stdout
    assert not (tmp_path / "s").exists()
    ended = RUNNER.invoke(app, words)
    first, second = ended.stdout.splitlines()
    assert first.startswith("1 pair from folders, 1 of them new, 1 new label by my taste")
    train = f"prefloop train --config sd15-lora --labeler 'my taste' --store {tmp_path / 's'} --output-dir my-taste"
    assert second == f"next: `{train}`, see docs/for-artists.md"
