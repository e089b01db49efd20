"""Prompt files are read exactly, or refused with the file's name, the place and the cure."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefloop.generate import Prompt, read_prompts
from prefloop.store import UsageError

TWO = [Prompt("a red circle", {"relation": "alone"}), Prompt('a "blue" square, with comma', {})]


def file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def parquet(folder: Path, table: pa.Table) -> str:
    pq.write_table(table, folder / "x.parquet")
    return str(folder / "x.parquet")


def test_each_format_gives_the_same_prompts(tmp_path: Path):
    first, second = TWO[0].text, TWO[1].text
    records = [{"prompt": first, "relation": "alone"}, {"prompt": second}]
    sources = [
        file(tmp_path, "x.jsonl", "\n".join(map(json.dumps, records)) + "\n\n"),
        file(tmp_path, "x.json", json.dumps(records)),
        file(tmp_path, "x.csv", f'prompt,relation\n{first},alone\n"a ""blue"" square, with comma",\n'),
        file(tmp_path, "x.tsv", f"prompt\trelation\r\n{first}\talone\r\n{second}\t\r\n"),
        parquet(tmp_path, pa.table({"prompt": [first, second], "relation": ["alone", None]})),
    ]
    for source in sources:
        assert read_prompts(source) == TWO, source


def test_a_text_file_is_one_prompt_a_line(tmp_path: Path):
    source = file(tmp_path, "x.txt", "\ufeffone\r\n\n  two, spaced  \n\x0cform feed\u2028and line separator\n")
    texts = [prompt.text for prompt in read_prompts(source)]
    assert texts == ["one", "  two, spaced  ", "\x0cform feed\u2028and line separator"]


def test_json_may_be_a_list_of_texts(tmp_path: Path):
    assert read_prompts(file(tmp_path, "x.json", '["one", "two"]')) == [Prompt("one"), Prompt("two")]
    assert read_prompts(file(tmp_path, "x.jsonl", '"one"\n"two"')) == [Prompt("one"), Prompt("two")]


PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "a bowl\tFood\tBasic\t\n"
    '"Starry night" by hand\tArts\tStyle\t\n'
    '"an open mark\tWorld\tQuoting\tlone\n'
    "the last one\tPeople\tBasic\t\n"
)


def test_a_tsv_like_partiprompts_keeps_tags_and_survives_a_lone_quotation_mark(tmp_path: Path):
    assert read_prompts(file(tmp_path, "parti.tsv", PARTI)) == [
        Prompt("a bowl", {"Category": "Food", "Challenge": "Basic"}),
        Prompt('"Starry night" by hand', {"Category": "Arts", "Challenge": "Style"}),
        Prompt('"an open mark', {"Category": "World", "Challenge": "Quoting", "Note": "lone"}),
        Prompt("the last one", {"Category": "People", "Challenge": "Basic"}),
    ]


def test_a_lone_quotation_mark_in_the_last_row_keeps_its_tags(tmp_path: Path):
    source = file(tmp_path, "x.tsv", 'Prompt\tCategory\n"an open mark\tWorld')
    assert read_prompts(source) == [Prompt('"an open mark', {"Category": "World"})]


def test_quotation_marks_of_a_tsv_that_does_not_quote_stay(tmp_path: Path):
    source = file(tmp_path, "x.tsv", 'Prompt\tCategory\n"Starry night" by hand\tArts\n')
    assert read_prompts(source) == [Prompt('"Starry night" by hand', {"Category": "Arts"})]


def test_duplicates_and_blank_lines_count_once_and_not_at_all(tmp_path: Path):
    source = file(tmp_path, "x.csv", "prompt,tag\none,first\n ,\none,second\ntwo,\n")
    assert read_prompts(source) == [Prompt("one", {"tag": "first"}), Prompt("two")]


def test_a_limit_counts_different_prompts(tmp_path: Path):
    source = file(tmp_path, "x.txt", "one\none\ntwo\nthree\n")
    assert [prompt.text for prompt in read_prompts(source, 2)] == ["one", "two"]
    assert len(read_prompts(source, 100)) == 3


def test_the_built_in_prompts_are_two_lists_without_a_common_prompt():
    training, heldout = read_prompts("shapes"), read_prompts("shapes-heldout")
    assert len(training) == 900
    assert len(heldout) == 400
    assert not {prompt.text for prompt in training} & {prompt.text for prompt in heldout}


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.txt"])
def test_a_prompt_of_a_megabyte_is_read(tmp_path: Path, name: str):
    text = "a" * 1_000_000
    content = {"x.jsonl": json.dumps({"prompt": text}), "x.txt": text}.get(name, f"prompt\n{text}\n")
    assert read_prompts(file(tmp_path, name, content)) == [Prompt(text)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,tag\none,\n", "row 2: no column 'prompt'; the columns are text, tag"),
        (
            "x.jsonl",
            '{"prompt": "one"}\n{"text": "two"}\n',
            "line 2: no column 'prompt'; the columns are text",
        ),
        ("x.jsonl", '{"prompt": "one"}\n{"prompt": ', "line 2 is not valid JSON"),
        ("x.jsonl", '{"prompt": 3}', "line 1: the prompt is not a string"),
        ("x.jsonl", "[1]", "line 1: must be a string or an object"),
        ("x.json", '{"prompt": "one"}', "must hold a JSON list"),
        ("x.json", "", "is not valid JSON"),
        ("x.json", "[]", "holds no prompts"),
        ("x.txt", "", "holds no prompts"),
        ("x.txt", " \n\n", "holds no prompts"),
        ("x.csv", "prompt\n", "holds no prompts"),
        ("x.txt", "one\ntwo \x00\n", "line 2: the prompt contains a NUL character"),
        ("x.csv", 'prompt,tag\n"one,\ntwo,\n', "is not valid CSV: .*; double the quotation marks"),
        ("x.csv", b"prompt\n\xe9t\xe9\n", "is not UTF-8 at byte 7; convert it first"),
        ("x.json", '["\\ud800"]', "item 1: the prompt is not valid Unicode"),
        ("x.parquet", b"PAR1 no", "is not a Parquet file"),
        ("x.xlsx", "one", r"must end in \.txt, \.jsonl"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_place(tmp_path: Path, name: str, content: str | bytes, message: str):
    source = file(tmp_path, name, content)
    with pytest.raises(UsageError, match=message) as caught:
        read_prompts(source)
    assert source in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["one"]}, "no column 'prompt'; the columns are text"),
        ({"prompt": pa.array([], pa.string())}, "no prompt"),
    ],
)
def test_a_bad_parquet_file_is_refused(tmp_path: Path, columns: dict, message: str):
    with pytest.raises(UsageError, match=message):
        read_prompts(parquet(tmp_path, pa.table(columns)))


def test_bytes_and_nested_columns_are_no_tags(tmp_path: Path):
    table = pa.table({"prompt": ["one"], "jpg": [b"\xff\xd8"], "path": [{"x": 1}], "kind": ["y"]})
    assert read_prompts(parquet(tmp_path, table)) == [Prompt("one", {"kind": "y"})]


@pytest.mark.parametrize("source", ["shapez", "gone.txt", "."])
def test_a_missing_file_is_named_with_the_built_in_lists(source: str):
    with pytest.raises(UsageError, match=r"prompt file .* not found; name a file, or one of shapes, shapes-heldout"):
        read_prompts(source)


def test_lists_are_tags_in_json(tmp_path: Path):
    questions = [["Is the fox 'red'?", "Yes"], ["Où est-il ?", "ici"]]
    source = file(tmp_path, "x.jsonl", json.dumps({"prompt": "a fox", "vqa_list": questions, "atom_count": 3}))
    (prompt,) = read_prompts(source)
    assert prompt.tags.keys() == {"vqa_list", "atom_count"}
    assert (json.loads(prompt.tags["vqa_list"]), prompt.tags["atom_count"]) == (questions, "3")
