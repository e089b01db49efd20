"""docs/sql.md: every block runs on an example store and prints the output shown below it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from example_store import example_store
from prefloop.cli import app
from prefloop.store.check import check
from prefloop.store.queries.saved import saved_queries
from typer.testing import CliRunner

TEXT = (Path(__file__).parents[2] / "docs" / "sql.md").read_text()
BLOCKS = re.findall(r"```(sh|sql|python|text)\n(.*?)```", TEXT, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sql")
    assert check(example_store(folder / "pairs")) == []
    return folder


def answers() -> list[tuple[str, str]]:
    """Each command with the text that follows it, the query's own text left out."""
    shown = [block for block in BLOCKS if block[0] in ("sh", "text")]
    assert [kind for kind, _ in shown] == ["sh", "text"] * 21 + ["text"]  # the last one is Python's
    return [(shown[at][1], shown[at + 1][1]) for at in range(0, 42, 2)]


def stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.slow(reason="runs the commands of a document")
def test_every_command_prints_the_output_below_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    for command, answer in answers():
        ended = CliRunner().invoke(app, shlex.split(command)[1:])
        assert ended.exit_code == 0, (command, ended.output)
        assert stripped(ended.stdout) == stripped(answer), command


def test_every_saved_query_is_shown_verbatim():
    named = re.findall(r"--name ([\w-]+) [^\n]*\n```\n\n```sql\n(.*?)\n```", TEXT, re.S)
    assert len(named) == 16
    assert dict(named) == {name: saved.sql for name, saved in saved_queries().items()}


def test_the_database_opens_in_python_without_prefloop(folder: Path):
    (script,) = (block for kind, block in BLOCKS if kind == "python")
    script += "\nimport sys\nassert not {'prefloop', 'pyarrow'} & set(sys.modules)\n"
    ended = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert stripped(ended.stdout.rstrip()) == stripped(BLOCKS[-1][1])
