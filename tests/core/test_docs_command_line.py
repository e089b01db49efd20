"""docs/command-line.md: its options, exit codes and kinds of errors are those that exist."""

import json
import re
from pathlib import Path
from typing import Any

import typer
from content import add_label, add_labeler, fill
from prefloop.cli import app
from prefloop.core import errors
from prefloop.core.commands import walk
from prefloop.relabel.judges.chat import BudgetSpent
from prefloop.store import PairStore
from typer.testing import CliRunner

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()


def test_every_option_of_the_page_exists():
    root: Any = typer.main.get_command(app)
    known = {option for _, command in walk(root) for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"`(--[a-z-]+)", PAGE.split("## In the shell")[0]))
    assert len(named) > 15
    assert named <= known


def test_the_exit_codes_are_those_of_the_errors():
    rows = dict(re.findall(r"^\| (\d) \| [^|]+\| (?:`\w+`, )*`(\w+)`", PAGE, re.M))
    rows["1"] = "PrefloopError"
    for code, name in rows.items():
        assert getattr(errors, name).exit_code == int(code)
    assert set(rows) == {"1", "2", "3", "4", "5", "6"}
    assert f"| {BudgetSpent('').exit_code} | " in PAGE
    assert f"`{BudgetSpent.__name__}`" in PAGE


def test_the_two_documents_are_what_is_printed(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    store = PairStore.create(Path("pairs"))
    pairs = fill(store)  # 3 prompts with two images each
    add_labeler(store, "me")
    for pair in pairs:
        add_label(store, pair, "me", "a")
    store.ingest()
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    good, bad = block.splitlines()
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    printed = [CliRunner().invoke(app, line.split()[1:]).stdout for line in commands.splitlines()]
    assert printed[0].startswith(good.split(" …")[0])
    told, expected = json.loads(printed[1])["error"], json.loads(bad)["error"]
    assert told["message"].startswith(expected["message"].rstrip("…"))
    assert told | {"message": ""} == expected | {"message": ""}
