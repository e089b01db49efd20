"""Saved queries, their parameters, and `store schema`."""

import json
from pathlib import Path

import pytest
from example_store import example_store
from prefloop.cli import app
from prefloop.store import PairStore, UsageError
from prefloop.store.check import logical_hashes
from prefloop.store.queries.parameters import parameters
from prefloop.store.queries.saved import saved_queries, saved_query
from prefloop.store.query import ask
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    return example_store(tmp_path_factory.mktemp("asked") / "store")


def query(*words: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["store", "query", *words])
    return ended.exit_code, ended.stdout + ended.stderr


def test_parameters_are_json_values_or_else_text():
    given = [
        "a=1",
        "b=-0.5",
        "c=true",
        "d=null",
        'e="1"',
        "f=[1, 2]",
        "g=human:me",
        "h=",
        "i=x=y",
        "j=NaN",
        'k={"a": 1}',
    ]
    expected = {"a": 1, "b": -0.5, "c": True, "d": None, "e": "1", "f": [1, 2], "g": "human:me", "h": "", "i": "x=y"}
    assert parameters(given) == expected | {"j": "NaN", "k": '{"a": 1}'}
    assert parameters(["x=" + "[" * 100_000]) == {"x": "[" * 100_000}


@pytest.mark.parametrize("given", ["a", "=1", "1a=1", "a b=1", "a;drop=1", "ä=1", "$a=1", "a" * 64 + "=1", "a=\udcff"])
def test_a_parameter_that_is_not_a_name_and_a_value_is_refused(given: str):
    with pytest.raises(UsageError, match=r"parameter|takes NAME=VALUE"):
        parameters([given])


def test_a_parameter_given_twice_is_refused():
    with pytest.raises(UsageError, match="'a' is given twice"):
        parameters(["a=1", "a=2"])


@pytest.mark.parametrize(
    "value",
    ["x' or 1=1 --", "x'; drop table prompts; --", '"', "$other", "/etc/passwd", "prompts", "\\", "%", "\x00'"],
)
def test_a_value_never_becomes_part_of_the_query(asked: PairStore, value: str):
    before = logical_hashes(asked)
    assert ask(asked, "select $v as v", parameters={"v": value}).to_pylist() == [{"v": value}]
    assert ask(asked, "select * from prompts where prompt = $v", parameters={"v": value}).num_rows == 0
    assert logical_hashes(asked) == before


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("select * from prompts where prompt = $v", {}),
        ("select 1", {"v": 1}),
        ("select $a", {"a": 1, "b": 2}),
        ("select $v", {"v": 10**60}),
        ("select 1; select $v", {"v": 1, "w": 2}),
        ("from query($v)", {"v": "drop table prompts"}),
        ("from query($v)", {"v": "copy prompts to 'out.csv'"}),
        ("from read_text($v)", {"v": "/etc/hostname"}),
        ("from glob($v)", {"v": "/etc/*"}),
        ("from query_table($v)", {"v": "/etc/hostname"}),
        ("from $v", {"v": "prompts"}),
        ("delete from prompts where prompt = $v", {"v": "x"}),
        ("attach $v as other", {"v": "out.duckdb"}),
    ],
)
def test_parameters_give_no_access_beyond_the_store(
    asked: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, values: dict
):
    monkeypatch.chdir(tmp_path)
    before = logical_hashes(asked)
    with pytest.raises(UsageError):
        ask(asked, sql, parameters=values)
    assert not list(tmp_path.iterdir())
    assert logical_hashes(asked) == before


def test_numbers_ids_and_lists_keep_their_types(asked: PairStore):
    pair = str(asked.rows("select min(pair_id) from pairs")[0][0])
    where = "pair_id = $pair and margin > $least and labeler in (select unnest($labelers))"
    given = parameters([f"pair={pair}", "least=0", 'labelers=["pickscore", "nobody"]'])
    assert ask(asked, f"select labeler from labels where {where}", parameters=given).to_pylist() == [
        {"labeler": "pickscore"}
    ]


def test_every_saved_query_takes_its_parameters_and_no_others(asked: PairStore):
    for name, saved in saved_queries().items():
        used = {found for found in saved.parameters if f"${found}" in saved.sql}
        assert used == saved.parameters.keys(), name
        assert saved.sql.count("$") >= len(used)
        ask(asked, saved.sql, parameters=saved.values({}))
        with pytest.raises(UsageError, match=f"the query {name} has no parameter 'other'"):
            saved.values({"other": 1})


def test_saved_queries_give_the_right_results(asked: PairStore):
    def found(name: str, **given: object) -> list[dict]:
        saved = saved_query(name)
        return ask(asked, saved.sql, parameters=saved.values(given)).to_pylist()

    labels = asked.rows("select pair_id, labeler, revision, choice, response_ms, margin from labels order by all")
    # a person's labels by hand: each pair's answers in the order of their repetitions
    ann: dict = {}
    for pair, labeler, _, choice, *_ in labels:
        if labeler == "human:ann":
            ann.setdefault(pair, []).append(choice)
    again = [answers[0] == answers[1] for answers in ann.values() if len(answers) == 2]
    (row,) = found("self-agreement")
    assert (row["repeats"], row["same"]) == (len(again), pytest.approx(sum(again) / len(again)))
    (tied,) = (row for row in found("tie-share") if row["labeler"] == "human:ann")
    assert tied["ties"] == pytest.approx(sum(answers[-1] == "tie" for answers in ann.values()) / len(ann))
    (cost,) = (row for row in found("label-cost") if row["what"] == "labels of human:ann")
    seconds = sum(ms for _, labeler, _, _, ms, _ in labels if labeler == "human:ann") / 1000
    assert (cost["n"], cost["seconds"]) == (sum(map(len, ann.values())), pytest.approx(seconds))
    margins = sorted(margin for _, labeler, _, _, _, margin in labels if labeler == "pickscore")
    assert [row["margin"] for row in found("closest-pairs", n=3)] == pytest.approx(margins[:3])
    left = {row["labeler"]: row["remaining"] for row in found("unlabelled-pairs")}
    assert left == {"human:ann": 0, "pickscore": 0, "human:ben": 8}
    # each model's wins and losses are the other's losses and wins
    rates = {(row["value"], row["model"]): row["win_rate"] for row in found("win-rates")}
    assert all(rates[value, "base"] + rates[value, "tuned"] == pytest.approx(1) for value, _ in rates)
    lost = {(row["labeler"], row["value"]) for row in found("lost-tags")}
    for labeler in ("eval:hps@2.1", "eval:clip@1"):
        rates = {(row["value"], row["model"]): row["win_rate"] for row in found("win-rates", labeler=labeler)}
        losing = {value for (value, model), rate in rates.items() if model == "tuned" and rate < 0.5}
        assert {value for who, value in lost if who == labeler} & {value for value, _ in rates} == losing
    assert [row["what"] for row in found("duplicates")] == ["shared image", "similar prompts"]
    assert sum(row["labels"] for row in found("progress")) == len(labels)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a query, or --name"),
        (["select 1", "--name", "closest-pairs"], "give a query, or --name"),
        (["--name", "closest-pairs", "--list"], "give a query, or --name"),
        (["--name", "closest"], "unknown query 'closest'; choose from closest-pairs"),
        (["--name", "../saved"], "unknown query '../saved'"),
        (["--name", "tie-share", "-p", "n=3"], "the query tie-share has no parameter 'n'; it has none"),
        (["select $n", "-p", "n"], "-p takes NAME=VALUE"),
        (["select $n, $m"], "the query needs $"),
        (["select 1", "-p", "n=1"], "the query has no $n; remove the parameter n"),
        (["--name", "closest-pairs", "-p", "n=many"], "many"),
    ],
)
def test_a_wrong_query_ends_in_one_line(asked: PairStore, words: list[str], message: str):
    code, printed = query(*words, "--store", str(asked.path))
    assert code == 2
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


def test_the_list_needs_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, printed = query("--list", "--format", "json")
    assert code == 0
    assert [row["name"] for row in json.loads(printed)] == sorted(saved_queries())


def test_schema_describes_every_table_view_and_column(asked: PairStore):
    ended = CliRunner().invoke(app, ["store", "schema", "--json", "--store", str(asked.path)])
    told = {relation["name"]: relation for relation in json.loads(ended.stdout)}
    there = asked.rows("select table_name, column_name from duckdb_columns() where not internal")
    assert {(name, column["name"]) for name, one in told.items() for column in one["columns"]} == set(there)
    assert told["score_pairs(scorer_name)"]["kind"] == "macro"
    assert all(relation["comment"] for relation in told.values())
    assert [c["name"] for c in told["scores"]["columns"] if c["key"]] == ["scorer", "image_id", "prompt_id"]
    shown = CliRunner().invoke(app, ["store", "schema", "labels", "--store", str(asked.path)]).stdout
    assert shown.startswith("table labels: Every label ever given")
    assert "  response_ms     integer         Milliseconds a person took to answer.\n" in shown
    wrong = CliRunner().invoke(app, ["store", "schema", "label", "--store", str(asked.path)])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "unknown table or view 'label'; choose from meta" in wrong.stderr
