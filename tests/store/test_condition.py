"""A condition can only exclude rows: it never adds rows of another labeler or of an evaluation."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import content
import little_datasets as little
import pytest
from prefloop.cli import app
from prefloop.store import PairStore, UsageError
from prefloop.store.condition import condition
from prefloop.store.exporters.config import ExportConfig
from prefloop.store.exporters.select import selected_labels
from prefloop.train import TrainConfig
from prefloop.train.pairs import select_pairs
from typer.testing import CliRunner

DOCS = [Path(__file__).parents[2] / name for name in ("README.md", *(f"docs/{n}.md" for n in ("data", "tuning", "from-diffusiondpo")))]  # fmt: skip
ONE_EXPRESSION = [
    "1=1 union select * from preferences where source='eval'",
    "true union all select * from preferences",
    "true intersect (select true)",
    "true limit 1",
    "true offset 1",
    "true order by random()",
    "true group by all",
    "true having true",
    "true qualify true",
    "true using sample 3",
    "true from preferences",
    "true where true",
    "true, true",
    "true,",
    "true as x",
    "x: true",
    "distinct true",
    "*",
    "true; select 1",
]
SYNTAX = [
    "true) q, (select * from preferences",
    "true) or (true",
    "margin > 1)",
    "(margin > 1",
    "margin >",
    "true;",
    "select true",
    "all true",
    "/* true",
    "-- true",
    "",
    "true\0) or (true",
    "'\udcff' = prompt",
    "not " * 3000 + "true",
]
UNSTABLE = [
    "random() > 0.5",
    "uuid() is not null",
    "now() > '2020-01-01'",
    "today() = date '2020-01-01'",
    "CURRENT_TIMESTAMP > '2020-01-01'",
    "current_date > '2020-01-01'",
    "age(timestamp '2020-01-01') > interval 1 day",
    "ago(interval 1 day) is null",
    "pair_id in (select pair_id from pairs limit 5)",
    "pair_id in (select pair_id from pairs limit 10%)",
    "pair_id in (select pair_id from pairs tablesample 10%)",
    "pair_id in (select pair_id from pairs using sample 10)",
    "pair_id in (select pair_id from pairs order by random() limit 5)",
    "exists (from query('select 1 where random() > 0.5'))",
    "exists (from read_csv('x'))",
]
PARAMETERS = ["margin > $least", "margin > ?", "margin > $1"]
USABLE = [
    "margin > 0 -- the surest",
    "margin > 0 /* the surest */",
    "prompt not in ('a;b', 'x -- y', ')', 'limit 1')",
    "preferences.margin > 0",
    "margin >= (select avg(margin) from preferences)",
    "pair_id in (with x as (select pair_id from labels) select pair_id from x)",
    "pair_id in (select pair_id from preferences order by margin, pair_id limit 500)",
    "exists (select 1 from labels l where l.pair_id = preferences.pair_id)",
    "case when margin > 0 then true else false end",
    "age(timestamp '2020-01-01', timestamp '2019-01-01') > interval 1 day",
    "pair_id not in (select pair_id from score_pairs('nobody'))",
]


@pytest.fixture
def mixed(labelled: PairStore) -> PairStore:
    """Beside redder's labels, the same pairs by another labeler, and a pair of an evaluation that redder decided."""
    pairs = [pair for (pair,) in labelled.rows("select pair_id from pairs order by pair_id")]
    content.add_labeler(labelled, "other")
    labels = [{"pair_id": pair, "labeler": "other", "revision": 0, "choice": "a", "margin": 1.0} for pair in pairs]
    labelled.append("labels", labels)
    prompt = content.add_prompt(labelled, "of an evaluation")
    images = [content.add_image(labelled, (1, 2, value)) for value in (3, 4)]
    content.add_label(labelled, content.add_pair(labelled, prompt, *images, source="eval"), "redder", "a", margin=1.0)
    labelled.ingest()
    return labelled


@pytest.mark.parametrize(
    ("attacks", "why"),
    [
        (ONE_EXPRESSION, "it must be one expression"),
        (SYNTAX, r"syntax error|unterminated|selection list|UTF-8|depth"),
        (UNSTABLE, r"each time|must always select|not allowed in a condition"),
        (PARAMETERS, r"it has a parameter, \$"),
    ],
    ids=["queries", "syntax", "unstable", "parameters"],
)
def test_what_is_not_one_stable_expression_is_refused(attacks: list[str], why: str):
    for attack in attacks:
        with pytest.raises(UsageError, match=why) as refused:
            condition(attack)
        message = str(refused.value)
        assert message.startswith(f"--where {attack!r} cannot be used: ")
        assert "\n" not in message
        assert "select (" not in message.removeprefix(f"--where {attack!r}")  # no bracket of ours


@pytest.mark.slow(reason="writes and reads whole stores")
def test_accepted_conditions_select_only_rows_of_the_labelers_and_no_evaluation_pairs(
    mixed: PairStore, config: TrainConfig
):
    every = [*USABLE, "true", "source = 'eval' or labeler = 'other' or true", "pair_id in (select pair_id from pairs)"]
    for where in every:
        pairs = select_pairs(mixed, replace(config, where=where))
        assert len(pairs.train) + len(pairs.validation) == 30, where
        assert {pair.labeler for pair in pairs.train + pairs.validation} == {"redder"}
        rows = selected_labels(mixed, ExportConfig(output_dir=Path("out"), labelers=("redder",), where=where))
        assert (rows.num_rows, set(rows["labeler"].to_pylist())) == (30, {"redder"}), where
        assert set(rows["source"].to_pylist()) == {"generate"}


@pytest.mark.slow(reason="writes and reads whole stores")
def test_every_command_with_a_condition_refuses_the_same_ones(mixed: PairStore, config: TrainConfig, tmp_path: Path):
    little.pickapic(tmp_path / "x.parquet")
    commands = (
        ["train", "--labeler", "redder", "--model", config.model, "--output-dir", str(tmp_path / "out")],
        ["store", "export", str(tmp_path / "out")],
        ["store", "import", str(tmp_path / "x.parquet")],
    )
    for words in commands:
        for attack in ("1=1 union select * from preferences where source='eval'", "true limit 1", "random() < 2"):
            ended = CliRunner().invoke(app, [*words, "--where", attack, "--store", str(mixed.path)])
            assert ended.exit_code == 2, ended.output
            assert ended.stderr.startswith(f"prefloop: --where {attack!r} cannot be used: ")
            assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_messages_about_a_wrong_condition_do_not_show_our_query(mixed: PairStore, config: TrainConfig):
    for where in ("marg > 1", "sum(margin) > 1", "row_number() over () > 1", "no_such(margin)", "prompt::integer > 1"):
        with pytest.raises(UsageError) as refused:
            select_pairs(mixed, replace(config, where=where))
        assert not re.search(r"LINE|select|\n|unnest", str(refused.value)), refused.value


def test_every_condition_in_the_documentation_works(mixed: PairStore):
    found = []
    for path in DOCS:
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"^prefloop (?:train|store export|store import) .*--where.*$", text, re.M):
            words = shlex.split(line)
            found.append((line, words[words.index("--where") + 1]))
    assert len(found) >= 6
    for line, where in found:
        in_brackets = condition(where)
        if " import " not in line:  # its columns are the source's
            mixed.rows(f"select count(*) from preferences where {in_brackets}")


@pytest.mark.slow(reason="writes and reads whole stores")
def test_a_result_names_the_labelers_whose_pairs_it_was_trained_on(mixed: PairStore, config: TrainConfig):
    from prefloop.train.stage import train

    train(replace(config, labelers=("redder", "other"), where="labeler = 'redder'", max_train_steps=1), mixed)
    told = json.loads((Path(config.output_dir) / "prefloop.json").read_text())
    assert told["labelers"] == {"redder": {}}
