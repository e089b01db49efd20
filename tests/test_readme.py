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


def test_the_recipe_for_a_model_of_ones_own_runs(tiny_pipeline: Path, tmp_path: Path):
    import content

    section = README[README.index("### Your own model") :]
    (block,) = re.findall(r"```sh\n(.*?)```", section[: section.index("`--model` takes")], re.S)
    (tmp_path / "prompts.txt").write_text("".join(f"a red thing {n}\n" for n in range(12)))
    (tmp_path / "held-out.txt").write_text("".join(f"a blue thing {n}\n" for n in range(10)))
    export, *lines = block.splitlines()
    store = export.removeprefix("export PREFLOOP_STORE=")
    assert [line.split()[1] for line in lines] == ["prompts", "generate", "relabel", "train", "eval", "browse"]
    for line in lines[:-1]:  # the last one is a server
        words = shlex.split(line.replace("stable-diffusion-v1-5/stable-diffusion-v1-5", str(tiny_pipeline)))[1:]
        # the same commands on a tiny model and the built-in scorers, on fewer steps
        if words[0] in ("generate", "eval"):
            words += ["--num-inference-steps", "2"]
        if words[0] in ("relabel", "eval"):
            words += ["--checkpoint", "shapes"]
        if words[0] == "train":
            words += [
                "--max-train-steps",
                "2",
                "--train-batch-size",
                "2",
                "--resolution",
                "32",
            ]
            words += ["--gradient-accumulation-steps", "1", "--mixed-precision", "no"]
        code, printed = content.finished(*words, cwd=tmp_path, PREFLOOP_STORE=store)
        assert code == 0, (line, printed[-2000:])
    assert (tmp_path / "sd15-dpo" / "pytorch_lora_weights.safetensors").exists()


def test_files_that_readme_names_are_there():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_code_files_that_a_document_names_exist(name: str):
    for path in re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|sql))`", (ROOT / name).read_text()):
        assert (ROOT / path).exists(), path
