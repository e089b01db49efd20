"""README says what is there."""

import re
import shlex
from pathlib import Path

import pytest
from prefloop.cli import app
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """Every `prefloop …` line of README's code blocks."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.split("#")[0]) for line in lines if line.startswith("prefloop ")]


def test_every_command_of_readme_has_the_options_it_is_given():
    assert len(commands()) >= 6
    for words in commands():
        names = [word for word in words[1:3] if not word.startswith("-")]
        depth = 2 if names[0] in ("store", "scorers", "prompts") else 1
        shown = CliRunner().invoke(app, [*names[:depth], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, words
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in shown.output, (words, option)


def test_the_loop_of_readme_runs_as_it_stands(tmp_path: Path):
    import content

    block = next(block for block in re.findall(r"```sh\n(.*?)```", README, re.S) if "prefloop generate" in block)
    for line in block.replace("\\\n", " ").splitlines():
        if not line.startswith("prefloop "):
            continue
        words = shlex.split(line)[1:]
        # the same commands on fewer prompts and steps, so that they take seconds
        if words[0] in ("generate", "eval"):
            words += ["--limit", "6", "--num-inference-steps", "3"]
        if words[0] == "generate":
            words += ["--images-per-prompt", "2"]
        if words[0] == "train":
            words += ["--max-train-steps", "2", "--train-batch-size", "2"]
            words = [word if not word.startswith("margin") else "margin > 0" for word in words]
        code, printed = content.finished(*words, cwd=tmp_path)
        assert code == 0, (line, printed[-2000:])
    assert (tmp_path / "tuned" / "prefloop.json").exists()


def test_files_that_readme_names_are_there():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_code_files_that_a_document_names_exist(name: str):
    for path in re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|sql))`", (ROOT / name).read_text()):
        assert (ROOT / path).exists(), path
