"""`prefloop prompts check`: what is in a set of prompts, and what of it was trained on."""

import json
import random
from itertools import count
from pathlib import Path

import pytest
from content import add_image, add_pair, add_prompt
from prefloop.cli import app
from prefloop.core.ids import prompt_id, split_of
from prefloop.generate.prompt_sets.check import Similar, check_prompts
from prefloop.generate.prompt_sets.scripts import scripts_of
from prefloop.generate.prompt_sets.similarity import SimilarPrompts, jaccard, shingles, words
from prefloop.store import PairStore, UsageError
from typer.testing import CliRunner

FIVE = "one two three four five"


def file(tmp_path: Path, *lines: str) -> str:
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    return str(tmp_path / "prompts.txt")


def of_split(split: str, start: str) -> str:
    """A text that the store puts in the split."""
    return next(text for n in count() if split_of(prompt_id(text := f"{start} {n}")) == split)


def add_two_images(store: PairStore, text: str, source: str = "generate") -> None:
    """A prompt with a pair; pairs of another source have other images."""
    red = 255 if source == "generate" else 100
    add_pair(store, add_prompt(store, text), add_image(store, (red, 0, 0)), add_image(store, (0, 0, 255)), source)


# Words and their similarity


def test_words_have_no_case_and_no_punctuation_and_characters_of_chinese_are_words():
    assert words("A  Cat's hat, ﬁne_art!") == ["a", "cat", "s", "hat", "fine", "art"]
    assert words("红色的猫 cat") == ["红", "色", "的", "猫", "cat"]
    assert words("кот?") == ["кот"]
    assert words(" :-) ") == [":-)"]  # without words, the text itself


def test_similarity_is_shared_words_and_word_pairs_over_all_of_them():
    assert shingles("A red, red cat") == {"a", "red", "cat", "a red", "red red", "red cat"}
    # 3 words and 2 pairs each; "a" and "cat" are in both: 2 of 8
    assert jaccard(shingles("a red cat"), shingles("a blue cat")) == 0.25
    # the same 7 words; of 6 pairs each, "cube on", "on a" and "ball here" are in both
    swapped = jaccard(shingles("red cube on a blue ball here"), shingles("blue cube on a red ball here"))
    assert swapped == (7 + 3) / (7 + 3 + 3 + 3)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_the_search_finds_exactly_what_comparing_everything_finds(threshold: float):
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefghij", k=rng.randint(1, 8))) for _ in range(300)]
    index = SimilarPrompts(texts[:200], threshold)
    sets = [shingles(text) for text in texts]
    found = 0
    for text, each in zip(texts, sets, strict=True):
        expected = {n: jaccard(each, sets[n]) for n in range(200) if jaccard(each, sets[n]) >= threshold}
        assert dict(index.search(text)) == expected
        found += len(expected)
    assert found > 200
    for n in range(200):
        assert {other for other, _ in index.earlier(n)} == {other for other, _ in index.search(texts[n]) if other < n}


# What is counted


def test_tags_repeated_rows_and_similar_prompts_are_counted(tmp_path: Path):
    rows = [
        (f"{FIVE} six", "long"),
        (FIVE, "long"),  # 5 words and 4 pairs of 6 and 5: 9/11
        ("One, two three four FIVE!", "loud"),  # equal to the one before but for case and punctuation
        (FIVE, "again"),  # a repeated row: its tag does not count
        ("one two three four", "short"),  # 4 and 3 of the 5 and 4 of FIVE: 7/9
        ("a cat", "short"),
    ]
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,kind\n" + "".join(f'"{text}",{kind}\n' for text, kind in rows))
    checked = check_prompts(str(path), threshold=7 / 9)
    assert (checked.n_rows, checked.n_prompts) == (6, 5)
    assert checked.tags == {"kind": {"long": 2, "short": 2, "loud": 1}}
    assert (checked.inside.n_equal, checked.inside.n_similar) == (1, 2)
    assert checked.inside.examples == [
        Similar(prompt=FIVE, other=f"{FIVE} six", similarity=9 / 11),
        Similar(prompt="one two three four", other=FIVE, similarity=7 / 9),
    ]
    assert checked.most_words == 6
    assert checked.mean_words == pytest.approx((6 + 5 + 5 + 4 + 2) / 5)
    assert check_prompts(str(path)).inside.n_similar == 1  # 0.8 by default


def test_leakage_counts_training_prompts_and_not_those_of_evaluations_or_validation(store: PairStore, tmp_path: Path):
    equal = of_split("train", "red circle left of blue square number")
    similar = of_split("train", "green star above yellow ring number")
    validated, evaluated = of_split("validation", "v"), of_split("train", "e")
    pairless = of_split("train", "p")
    for text in (equal, similar, validated):
        add_two_images(store, text)
    add_two_images(store, evaluated, source="eval")
    add_prompt(store, pairless)
    store.ingest()
    checked = check_prompts(
        file(tmp_path, f"{equal.upper()}!", f"small {similar}", validated, evaluated, pairless, "other"), store
    )
    leakage = checked.leakage
    assert leakage is not None
    assert leakage.n_training == 2
    assert (leakage.n_equal, leakage.n_similar) == (1, 1)
    assert leakage.share == pytest.approx(2 / 6)
    # 7 words and 6 pairs, of 8 and 7
    assert leakage.examples == [Similar(prompt=f"small {similar}", other=similar, similarity=13 / 15)]
    assert leakage.store == str(store.path)


def test_a_prompt_that_was_trained_on_also_by_evaluation_is_leaked(store: PairStore, tmp_path: Path):
    text = of_split("train", "t")
    add_two_images(store, text, source="eval")
    add_two_images(store, text)
    store.ingest()
    leakage = check_prompts(file(tmp_path, text), store).leakage
    assert leakage is not None
    assert (leakage.n_equal, leakage.share) == (1, 1.0)


def test_lengths_are_in_tokens_of_each_text_encoder(tmp_path: Path):
    # the built-in tokenizer: a token for each of these words, and a start and an end mark; it keeps 16
    checked = check_prompts(
        file(tmp_path, "a red circle", " ".join(["red"] * 14), " ".join(["red"] * 15)), model="shapes"
    )
    (of,) = checked.tokens
    assert (of.tokenizer, of.limit, of.longest, of.n_truncated) == ("tokenizer", 16, 17, 1)
    assert of.mean == pytest.approx((5 + 16 + 17) / 3)
    assert [of.tokenizer for of in check_prompts(file(tmp_path, "a"), model="shapes-flow").tokens] == [
        "tokenizer",
        "tokenizer_2",
    ]


def test_scripts_are_those_of_the_letters():
    assert scripts_of("A cat, 3 ﬁsh & ½ ☃") == {"Latin"}
    assert scripts_of("красный cat") == {"Cyrillic", "Latin"}
    assert scripts_of("赤い猫のネコ") == {"Han", "Hiragana", "Katakana"}
    assert scripts_of("قطة חתול बिल्ली 고양이 γάτα") == {"Arabic", "Hebrew", "Devanagari", "Hangul", "Greek"}
    assert scripts_of("123 !?") == set()


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_a_threshold_outside_of_0_to_1_is_refused(tmp_path: Path, threshold: float):
    with pytest.raises(UsageError, match="similarity must be positive and at most 1"):
        check_prompts(file(tmp_path, "a"), threshold=threshold)


def test_examples_that_begin_alike_are_shown_where_they_differ(tmp_path: Path):
    start = "an otter in rain boots with a big umbrella and a map, crossing a wooden bridge at dawn"
    source = file(tmp_path, f"{start}, oil painting", f"{start}, watercolor")
    shown = CliRunner().invoke(app, ["prompts", "check", source]).stdout.splitlines()
    # 16 words and 17 pairs are in both; 4 and 2 are not
    assert shown[2] == "    0.85  …n bridge at dawn, watercolor  ~  …n bridge at dawn, oil painting"


def test_the_command_prints_it_in_lines_or_as_json(store: PairStore, tmp_path: Path):
    text = of_split("train", "one two three four five")
    add_two_images(store, text)
    store.ingest()
    source = file(tmp_path, text, text, "кот", "the cat " * 30 + "red")
    options = ["prompts", "check", source, "--store", str(store.path), "--model", "shapes"]
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].startswith(f"{source}: 3 prompts, 1 repeated row; revision unknown; sha256 ")
    assert lines[1:4] == [
        "within itself: 0 equal but for case and punctuation, 0 similar (0.8 or more)",
        f"among 1 training prompt of {store.path}: 1 equal but for case and punctuation, 0 similar (0.8 or more): "
        "33.3 % of the prompts",
        f"words: {(6 + 1 + 61) / 3:.1f} on average, at most 61",
    ]
    assert lines[4].startswith("tokens of tokenizer: ")
    assert lines[5] == "scripts: Latin 2, Cyrillic 1"

    result = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)
    assert result["leakage"]["n_equal"] == 1
    assert result["scripts"] == {"Latin": 2, "Cyrillic": 1}
    assert result["tokens"][0]["limit"] == 16


def test_the_store_of_the_environment_is_compared_with_and_need_not_exist_yet(store: PairStore, tmp_path: Path):
    text = of_split("train", "one two three four five")
    add_two_images(store, text)
    store.ingest()
    options = ["prompts", "check", file(tmp_path, text)]
    named = CliRunner().invoke(app, options, env={"PREFLOOP_STORE": str(store.path)})
    assert f"among 1 training prompt of {store.path}: 1 equal" in named.stdout
    nowhere = tmp_path / "nowhere"
    early = CliRunner().invoke(app, options, env={"PREFLOOP_STORE": str(nowhere)})
    assert early.exit_code == 0
    assert early.stderr == f"no store at {nowhere} yet, so the prompts are not compared with training prompts\n"
    assert "training" not in early.stdout
    assert not nowhere.exists()
    # a store that is named by hand must be there
    assert CliRunner().invoke(app, [*options, "--store", str(nowhere)]).exit_code == 1
