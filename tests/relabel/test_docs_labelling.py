"""docs/labelling.md: its commands have the options they use, its queries run, and it names every queue."""

import re
import shlex
from pathlib import Path

import pytest
from content import add_label, add_labeler, fill
from prefloop.cli import app
from prefloop.relabel.annotate.config import LabelConfig
from prefloop.relabel.annotate.queue import QUEUES, pairs_to_label
from prefloop.store import PairStore
from prefloop.store.queries.saved import saved_queries
from prefloop.store.query import ask
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "labelling.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.startswith("prefloop ")
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_every_command_has_the_options_it_uses(words: list[str]):
    verbs = [word for word in words[1:3] if re.fullmatch("[a-z]+", word)]
    shown = CliRunner().invoke(app, [*verbs, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.output, option


def test_every_query_runs(store: PairStore):
    pairs = fill(store)
    add_labeler(store, "pickscore", kind="ai")
    add_label(store, pairs[1], "pickscore", "a", margin=0.25)
    store.ingest()
    queues = [words[words.index("--queue") + 1] for words in COMMANDS if "--queue" in words]
    close, tagged = [query for query in queues if query.startswith("select")]
    asked = [words for words in COMMANDS if words[1:3] == ["store", "query"]]
    times, questions, named = (words[-1] for words in asked)
    assert ask(store, times).num_rows == 0
    assert ask(store, questions).num_rows == 0
    assert named in saved_queries()
    (where,) = [words[words.index("--where") + 1] for words in COMMANDS if "--where" in words]
    assert ask(store, f"select count(*) as n from preferences where {where}").to_pylist() == [{"n": 1}]
    assert pairs_to_label(store, LabelConfig(queue=close)) == [pairs[1]]
    assert ask(store, tagged).num_rows == 0


@pytest.mark.parametrize("name", QUEUES)
def test_every_queue_is_documented(name: str):
    assert f"`{name}`" in TEXT


def test_every_link_leads_to_a_file():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    assert all((ROOT / "docs" / target).exists() for target in targets)
