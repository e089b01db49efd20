"""`store query` only reads the store, ends in time, and writes output that is safe for its readers."""

import csv
import io
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from content import add_prompt
from prefloop.store import PairStore, PrefloopError, UsageError, query
from prefloop.store.check import logical_hashes
from prefloop.store.query import Format, ask, write

secret = pa.table({"password": ["x"]})  # a Python variable that a query must not find


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    store = PairStore.create(tmp_path_factory.mktemp("query") / "store")
    for text in ("one", "two"):
        add_prompt(store, text)
    store.ingest()
    return store


def written(answer: pa.Table, form: Format) -> str:
    out = io.BytesIO()
    write(answer, form, out)
    return out.getvalue().decode()


def test_a_query_is_answered(asked: PairStore):
    assert ask(asked, "select prompt from prompts order by prompt").to_pylist() == [
        {"prompt": "one"},
        {"prompt": "two"},
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "delete from prompts",
        "insert into meta values (2, now())",
        "create table mine (x integer)",
        "create or replace view preferences as select 1",
        "drop table prompts",
        "select 1; delete from prompts",
        "copy prompts to '{folder}/out.csv'",
        "copy (select 1) to '{folder}/out.parquet' (format parquet)",
        "export database '{folder}/out'",
        "from read_csv('{folder}/secret.csv')",
        "from read_text('{folder}/secret.csv')",
        "from read_parquet('{store}/journal/*.parquet')",
        "from glob('{folder}/*')",
        "from '{folder}/secret.csv'",
        "from secret",
        "attach '{folder}/out.duckdb' as other",
        "attach ':memory:' as other; create table other.t as select 1",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "set memory_limit = '1TB'",
        "install httpfs",
        "load httpfs",
        "pragma enable_profiling",
        "",
        "  ",
        "selct 1",
        "select * from nothing",
    ],
)
def test_a_query_that_does_more_than_read_the_store_is_refused(asked: PairStore, tmp_path: Path, sql: str):
    (tmp_path / "secret.csv").write_text("password\nx\n")
    before = logical_hashes(asked)
    with pytest.raises(UsageError):
        ask(asked, sql.format(folder=tmp_path, store=asked.path))
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert logical_hashes(asked) == before


def test_a_runaway_query_is_interrupted_in_time(asked: PairStore):
    # 10^15 rows to join and add up: years
    sql = "select sum(a.range * b.range) from range(100_000_000) a, range(10_000_000) b"
    start = time.monotonic()
    with pytest.raises(PrefloopError, match=r"longer than 0\.3 s"):
        ask(asked, sql, timeout=0.3)
    assert time.monotonic() - start < 2.5
    assert ask(asked, "select 1 as x").to_pylist() == [{"x": 1}]


def test_a_query_without_enough_memory_is_not_called_wrong(asked: PairStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(query.CLOSED, "memory_limit", "20MB")
    with pytest.raises(PrefloopError, match="the query needs more memory than there is; narrow it") as caught:
        ask(asked, "select list(i) from range(10_000_000) numbers(i)")
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_timeout_that_is_not_a_time_is_refused(asked: PairStore, timeout: float):
    with pytest.raises(UsageError, match="timeout must be"):
        ask(asked, "select 1", timeout)


def test_json_and_jsonl_are_strict(asked: PairStore):
    answer = ask(
        asked,
        """select 'nan'::double as a, '-inf'::float as b, 0.5::double as c, null as d, true as e, ['nan'::double] as f,
            {'x': 'inf'::double} as g, 'é' as h, timestamp '2026-01-02 03:04:05' as i, 7::hugeint as j""",
    )
    # what is not a number is null
    expected = {"a": None, "b": None, "c": 0.5, "d": None, "e": True, "f": [None], "g": {"x": None}, "h": "é"}

    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    (row,) = json.loads(written(answer, "json"), parse_constant=strict)
    assert {key: row[key] for key in expected} == expected
    assert row["i"] == "2026-01-02T03:04:05Z"
    assert row["j"] == 7  # a number of any width is a number: sum() of integers has 128 bits
    (line,) = written(answer, "jsonl").splitlines()
    assert json.loads(line, parse_constant=strict) == row


def test_times_are_utc_to_the_second_in_every_format(asked: PairStore):
    # 03:04:05.678901 in a zone two hours east of UTC is 01:04:05 in UTC; stored times have no zone, and are UTC
    answer = ask(
        asked,
        """select timestamp '2026-01-02 03:04:05.678901' as stored, timestamptz '2026-01-02 03:04:05.678901+02' as east,
            interval '26 hours 1 minute 2.5 seconds' as took, [timestamp '2026-01-02 03:04:05'] as several""",
    )
    stored, east, several = "2026-01-02T03:04:05Z", "2026-01-02T01:04:05Z", '["2026-01-02T03:04:05Z"]'
    expected = {"stored": stored, "east": east, "took": "26:01:02", "several": [stored]}
    assert json.loads(written(answer, "json")) == [expected]
    assert json.loads(written(answer, "jsonl")) == expected
    _, row = csv.reader(io.StringIO(written(answer, "csv"), newline=""))
    assert row == [stored, east, "26:01:02", several]
    for text in row:
        assert text in written(answer, "table")
    # Arrow and Parquet keep the microseconds, and name the zone
    assert answer.schema.field("stored").type == pa.timestamp("us", "UTC")
    assert answer["stored"][0].as_py().microsecond == 678901


def test_tags_are_json_once(asked: PairStore):
    sql = 'select \'{"style": "photo", "n": 2}\'::json as tags, [\'{"a": 1}\'::json] as several, null::json as none, \'1\' as text'
    answer = ask(asked, sql)
    tags = {"style": "photo", "n": 2}
    assert json.loads(written(answer, "json")) == [{"tags": tags, "several": [{"a": 1}], "none": None, "text": "1"}]
    assert json.loads(written(answer, "jsonl"))["tags"] == tags
    _, row = csv.reader(io.StringIO(written(answer, "csv"), newline=""))
    assert json.loads(row[0]) == tags
    assert (
        answer["tags"][0].as_py() == '{"style": "photo", "n": 2}'
    )  # in Arrow they are text, for json_extract and the like
    # a text that looks like JSON stays a text
    assert json.loads(written(ask(asked, "select '{\"a\": 1}' as text"), "json")) == [{"text": '{"a": 1}'}]


def test_csv_has_json_for_lists_and_lower_case_booleans(asked: PairStore):
    answer = ask(asked, "select true as yes, ['a', null] as several, {'x': 0.5} as one, 3::hugeint as wide")
    _, row = csv.reader(io.StringIO(written(answer, "csv"), newline=""))
    assert row == ["true", '["a", null]', '{"x": 0.5}', "3"]


def test_an_empty_result_is_written_in_every_format(asked: PairStore):
    answer = ask(asked, "select prompt from prompts where false")
    assert json.loads(written(answer, "json")) == []
    assert written(answer, "jsonl") == ""
    assert written(answer, "csv") == "prompt\n"
    assert "0 rows" in written(answer, "table")


def test_csv_guards_formulas_and_quotes_where_needed(asked: PairStore):
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", 'say "hi", all', "two\nlines", "x=1", "a\r\nb\x9b2J"]
    values = ", ".join("('" + text + "')" for text in texts)
    answer = ask(asked, f"select t, -1 as n from (values {values}) v(t)")
    names, *rows = csv.reader(io.StringIO(written(answer, "csv"), newline=""))
    assert names == ["t", "n"]
    # the first six would be run by a spreadsheet; a number that is negative stays one
    assert [row[0] for row in rows[:5]] == ["'" + text for text in texts[:5]]
    assert [row[0] for row in rows[5:]] == ["'\ufffdx", *texts[6:9], "a\nb\ufffd2J"]  # nor does one steer a terminal
    assert {row[1] for row in rows} == {"-1"}


def test_parquet_holds_the_result_itself(asked: PairStore, tmp_path: Path):
    answer = ask(asked, "select prompt, length(prompt) as n from prompts order by prompt")
    with open(tmp_path / "x.parquet", "wb") as file:
        write(answer, "parquet", file)
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == answer.to_pylist()


def test_columns_with_the_same_name_are_all_kept(asked: PairStore):
    answer = ask(asked, "select 1 as x, 2 as x, 3 as y, 4 as x_2")
    assert written(answer, "csv").splitlines()[1] == "1,2,3,4"
    assert list(json.loads(written(answer, "json"))[0].values()) == [1, 2, 3, 4]


def test_a_table_shows_markup_and_control_characters_literally(asked: PairStore):
    sql = "select 'x [/foo] [red]y' as \"[bold]name\", 'a' || chr(27) || '[2J' || chr(7) || chr(8238) || 'z' as t, null as n"
    shown = written(ask(asked, sql), "table")
    assert "x [/foo] [red]y" in shown
    assert "[bold]name" in shown
    assert "a\ufffd[2J\ufffd\ufffdz" in shown
    assert not set("\x1b\x07\u202e") & set(shown)
    assert "1 row" in shown


def test_a_narrow_table_shows_names_whole_and_cuts_only_long_words():
    out = io.BytesIO()
    answer = pa.table({"labeler": ["weighted:pickscore+hps"], "config": ["x" * 61]})
    write(answer, "table", out, width=30)
    lines = [line for line in out.getvalue().decode().splitlines() if line[0] == "│"]
    cells = list(zip(*(line.split("│")[1:3] for line in lines), strict=True))
    assert "".join(cell.strip() for cell in cells[0]) == "weighted:pickscore+hps"
    assert "".join(cell.strip() for cell in cells[1]).endswith("…")


@pytest.mark.parametrize(
    ("sql", "form", "why"),
    [
        ("select date '0044-03-15 (BC)' as d", "table", "a date or time of the result cannot be written"),
        ("select date '9999-12-31' + 1 as d", "json", "a date or time of the result cannot be written"),
        ("select interval 1 day as i", "parquet", "Parquet cannot hold a column of the result"),
        ("select union_value(a := 1) as u", "parquet", "Parquet cannot hold a column of the result"),
    ],
)
def test_an_error_says_what_a_format_cannot_hold(asked: PairStore, sql: str, form: Format, why: str):
    with pytest.raises(UsageError, match=f"{why}.*cast it to varchar"):
        written(ask(asked, sql), form)
