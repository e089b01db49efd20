"""README says what is there."""

import re
import shlex
from pathlib import Path

import content
import pytest
from prefloop.cli import app
from prefloop.store import PairStore
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


def block_under(heading: str) -> list[list[str]]:
    """The commands of the first shell block under a heading, without `prefloop`; an `export` line sets the store."""
    (block, *_) = re.findall(r"```sh\n(.*?)```", README[README.index(heading) :], re.S)
    return [shlex.split(line.split("  #")[0])[1:] for line in block.replace("\\\n", " ").splitlines()]


def small(words: list[str]) -> list[str]:
    """The same command on fewer steps, so that it takes seconds."""
    if words[0] in ("generate", "eval"):
        return [*words, "--num-inference-steps", "2"]
    if words[0] == "train":
        more = "--max-train-steps 2 --train-batch-size 2 --gradient-accumulation-steps 1 --lr-warmup-steps 0"
        return [*words, *more.split(), "--mixed-precision", "no", "--no-allow-tf32", "--dataloader-num-workers", "0"]
    return words


def run(words: list[str], cwd: Path, store: str = "prefloop-store") -> str:
    code, printed = content.finished(*words, cwd=cwd, PREFLOOP_STORE=store)
    assert code == 0, (words, printed[-2000:])
    return printed


def test_the_stages_of_readme_run_as_they_stand(tmp_path: Path):
    block = next(block for block in re.findall(r"```sh\n(.*?)```", README, re.S) if "prefloop generate" in block)
    stages = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [words[0] for words in stages] == ["generate", "relabel", "train", "eval"]
    for words in stages:
        if words[0] in ("generate", "eval"):
            words += ["--limit", "6"]
        if words[0] == "generate":
            words += ["--images-per-prompt", "2"]
        run([word if not word.startswith("margin") else "margin > 0" for word in small(words)], tmp_path)
    assert (tmp_path / "tuned" / "prefloop.json").exists()


@pytest.mark.slow(reason="runs the commands of a document")
def test_the_recipe_for_a_model_of_ones_own_runs(tiny_pipeline: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("".join(f"a red thing {n}\n" for n in range(12)))
    (tmp_path / "held-out.txt").write_text("".join(f"a blue thing {n}\n" for n in range(10)))
    (export,), *commands = block_under("### Your own model")
    assert [words[0] for words in commands] == ["generate", "prompts", "relabel", "train", "eval", "browse"]
    for words in commands[:-1]:  # the last one is a server
        words = [word.replace("stable-diffusion-v1-5/stable-diffusion-v1-5", str(tiny_pipeline)) for word in words]
        # a tiny model, and the built-in scorers
        more = {
            "relabel": ["--checkpoint", "shapes"],
            "eval": ["--checkpoint", "shapes"],
            "train": ["--resolution", "32"],
        }
        run([*small(words), *more.get(words[0], [])], tmp_path, export.removeprefix("PREFLOOP_STORE="))
    assert (tmp_path / "sd15-dpo" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.slow(reason="runs the commands of a document")
def test_the_recipe_for_good_and_bad_images_runs(tiny_pipeline: Path, tmp_path: Path):
    content.two_folders(tmp_path / "mine")
    (export,), *commands = block_under("### Your good and bad images")
    assert [words[0] for words in commands] == ["store", "train"]
    for words in commands:
        more = ["--model", str(tiny_pipeline), "--resolution", "32", "--cpu"] if words[0] == "train" else []
        run([*small(words), *more], tmp_path, export.removeprefix("PREFLOOP_STORE="))
    assert (tmp_path / "my-taste" / "my-taste.safetensors").exists()


@pytest.mark.slow(reason="runs the commands of a document")
def test_the_recipe_that_asks_the_store_runs(copied_loop: Path):
    (export,), *commands = block_under("### Ask the store, and people")
    assert export == "PREFLOOP_STORE=prefloop-demo/store"
    folder = copied_loop / "loop"
    store = PairStore(folder / "store")
    asked = []
    for words in commands:
        if words[0] == "label":  # a server: its queue is asked for, and a person answers every pair
            run(["store", "query", "--name", words[words.index("--queue") + 1]], folder, "store")
            content.add_labeler(store, "human:me")
            for (pair,) in store.rows("select pair_id from pairs where source <> 'eval'"):
                content.add_label(store, pair, "human:me", "a")
            store.ingest()
            continue
        asked.append(" ".join(words[:2]))
        run(small(words), folder, "store")
    assert asked == [
        "store ls",
        "store query",
        "store query",
        "relabel --scorer",
        "store agreement",
        "scorers quality",
        "train --labeler",
    ]
    assert (folder / "by-people" / "prefloop.json").exists()


def test_files_that_readme_names_are_there():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_code_files_that_a_document_names_exist(name: str):
    for path in re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|sql))`", (ROOT / name).read_text()):
        assert (ROOT / path).exists(), path
