"""The command line is fast; a mistake ends in one line with the right exit code, and creates nothing."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import prefloop as package
import pytest
import typer
from content import add_label, add_labeler, environment, fill, prefloop
from prefloop.cli import app
from prefloop.store import PairStore
from prefloop.store.check import logical_hashes
from typer.testing import CliRunner

SLOW = {"torch", "diffusers", "transformers", "open_clip", "accelerate", "peft", "starlette", "uvicorn", "jinja2"}
RUNNER = CliRunner()
_REPORTING = """
import atexit, sys
def report():
    slow = sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[1].split(",")))
    sys.__stderr__.write("\\nIMPORTED " + ",".join(slow) + "\\n")
    sys.__stderr__.flush()
atexit.register(report)
from prefloop.cli import app
app(sys.argv[2:], prog_name="prefloop")
"""


def slow_imports(*arguments: object, cwd: Path, slow: Collection[str] = SLOW) -> tuple[int, str]:
    """Exit code, and which of the slow libraries a fresh process has imported at its end."""
    ended = subprocess.run(
        [sys.executable, "-c", _REPORTING, ",".join(slow), *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stderr.split("IMPORTED ")[1].split("\n")[0]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    store = PairStore.create(tmp_path_factory.mktemp("cli") / "store")
    pairs = fill(store)
    for labeler in ("silent", "me"):
        add_labeler(store, labeler)
    for pair in pairs:
        add_label(store, pair, "me", "a")
    store.ingest()
    return store


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["relabel", "--help"],
        ["train", "--help"],
        ["eval", "--help"],
        ["label", "--help"],
        ["prompts", "--help"],
        ["raters"],
        ["store", "ls"],
        ["store", "stats"],
        ["store", "check"],
        ["store", "rebuild"],
        ["store", "query", "select count(*) from pairs"],
    ],
    ids=" ".join,
)
def test_fast_commands_import_no_slow_library(filled: PairStore, arguments: list[str]):
    is_help = "--help" in arguments
    slow, store = (SLOW | {"duckdb", "pyarrow"}, []) if is_help else (SLOW, ["--store", filled.path])
    assert slow_imports(*arguments, *store, cwd=filled.path.parent, slow=slow) == (0, "")


@pytest.fixture(scope="module")
def occupied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the folder of a finished result on it, and a folder that is somebody else's."""
    import results
    import tiny

    folder = tmp_path_factory.mktemp("occupied")
    model = tiny.saved("sd15", folder / "tiny")
    results.lora_on(model, folder / "finished")
    record = json.loads((folder / "finished" / "prefloop.json").read_text())
    (folder / "finished" / "prefloop.json").write_text(json.dumps(record | {"steps": 7}))
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    return folder


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train --labeler me --model tiny --output-dir finished", 2, "finished holds a finished run of 7 steps"),
        ("train --labeler me --model tiny --output-dir finished --resume --max-train-steps 3", 2, "nothing to do"),
        ("train --labeler me --model tiny --output-dir mine", 2, "mine is not empty and holds no run of train"),
        ("train --labeler me --model tiny --output-dir mine --overwrite", 2, "no run of train began in mine"),
        ("train --labeler me --model tiny --output-dir new --report-to trackio", 1, "trackio is not installed"),
        (
            "train --labeler me --model tiny --output-dir new --quantize nf4 --lora-rank 0",
            2,
            "give a --lora-rank above 0",
        ),
        ("train --labeler me --model tiny --output-dir new --format transformer", 2, "give --format unet"),
        ("train --labeler me --model tiny --output-dir new --cpu --device cuda", 2, "--cpu is --device cpu"),
        ("train --labeler me --model tiny --output-dir new --device cuda:1", 2, "choose from cuda, mps, cpu"),
        ("loop shapes --output-dir mine", 2, "mine is not empty and holds no loop"),
        ("demo --output-dir mine", 2, "mine is not empty and holds no loop"),
        ("card mine", 2, "mine has no finished result"),
        ("eval --model finished --scorer oracle", 2, "name the prompts with --prompts"),
        ("eval --again nope", 2, "holds no evaluation"),
    ],
)
def test_a_refusal_imports_no_slow_library(filled: PairStore, occupied: Path, line: str, code: int, message: str):
    before = sorted(occupied.rglob("*"))
    words = line.split() if line.split()[0] in ("loop", "demo") else [*line.split(), "--store", str(filled.path)]
    ended = subprocess.run(
        [sys.executable, "-c", _REPORTING, ",".join(SLOW), *words],
        cwd=occupied,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, message in ended.stderr) == (code, True), ended.stderr
    assert ended.stderr.split("IMPORTED ")[1].split("\n")[0] == ""
    assert sorted(path for path in occupied.rglob("*") if path.name != ".lock") == before


def test_a_card_is_written_without_a_slow_library(filled: PairStore, occupied: Path):
    import shutil

    folder = Path(shutil.copytree(occupied / "finished", occupied / "carded"))
    facts = {
        "pipeline_class": "StableDiffusionPipeline",
        "objective": "dpo",
        "optimizer": "adamw",
        "absolute_learning_rate": 1e-5,
        "n_pairs": 8,
        "effective_batch": 4,
        "beta_mean": 5000.0,
        "beta_sum": 78.1,
        "labelers": {"people": {}},
        "run_id": "5f0d",
        "versions": {"python": "3.11.2"},
        "config": {
            "lora_rank": 2,
            "lora_alpha": None,
            "learning_rate": 1e-5,
            "lr_scheduler": "cosine",
            "where": None,
            "seed": 3,
        },
    }
    record = json.loads((folder / "prefloop.json").read_text())
    (folder / "prefloop.json").write_text(json.dumps(facts | record))
    assert slow_imports("card", "carded", "--store", filled.path, cwd=occupied) == (0, "")
    assert "StableDiffusionPipeline.from_pretrained" in (folder / "README.md").read_text()
    shutil.rmtree(folder)


@pytest.mark.slow(reason="starts processes")
def test_a_scorer_without_torch_labels_without_torch(store: PairStore, tmp_path: Path):
    fill(store, n_prompts=1)
    words = ["relabel", "--scorer", "little_scorers:Redness", "--store", store.path]
    assert slow_imports(*words, cwd=tmp_path) == (0, "")


def test_the_import_report_sees_an_import(tmp_path: Path):
    script = _REPORTING.replace("from prefloop.cli import app", "import transformers\nsys.exit()")
    ended = subprocess.run([sys.executable, "-c", script, "transformers"], cwd=tmp_path, capture_output=True, text=True)
    assert "IMPORTED transformers" in ended.stderr


BAD = [
    # arguments; exit code; what the line says
    ("relabel --store stroe", 1, "no store at stroe"),
    ("store ls --store stroe", 1, "no store at stroe"),
    ("store stats --store stroe", 1, "no store at stroe"),
    ("store check --store stroe", 1, "no store at stroe"),
    ("store rebuild --store stroe", 1, "no store at stroe"),
    ("store query select --store stroe", 1, "no store at stroe"),
    ("train --labeler me --output-dir out --store stroe", 1, "no store at stroe"),
    ("generate --prompts gone.txt --store new", 2, "prompt file gone.txt not found"),
    ("generate --prompts empty.txt --store new", 2, "empty.txt holds no prompts"),
    ("generate --prompts notes.txt --limit 0 --store new", 2, "limit must be positive, got 0"),
    ("generate --model shapez --prompts notes.txt --store new", 1, "cannot find the model 'shapez'"),
    ("generate --model ./gone --prompts notes.txt --store new", 1, "cannot find the model './gone'"),
    ("generate --model notes.txt --prompts notes.txt --store new", 1, "notes.txt is a file"),
    ("generate --guidance-scale nan --store new", 2, "guidance-scale must be between 0 and 1000"),
    ("generate --guidance-scale inf --store new", 2, "guidance-scale must be between 0 and 1000"),
    ("generate --guidance-scale 1e400 --store new", 2, "guidance-scale must be between 0 and 1000"),
    ("generate --images-per-prompt -1 --store new", 2, "images-per-prompt must be positive"),
    ("generate --batch-size 0 --store new", 2, "batch-size must be positive"),
    ("generate --seed -1 --store new", 2, "seed must be between 0 and 9223372036854775807"),
    ("generate --scheduler dimm --store new", 2, "unknown scheduler 'dimm'"),
    ("generate --pairing some --store new", 2, "unknown pairing 'some'; choose from all"),
    ("relabel --scorer nope --store STORE", 2, "unknown scorer 'nope'; choose from aesthetics"),
    ("relabel --scorer gone:X --store STORE", 2, "the scorer 'gone:X' cannot be imported: ModuleNotFoundError"),
    ("relabel --scorer oracle --store STORE", 2, "oracle is reserved for evaluation"),
    ("relabel --scorer clip --scorer hps --store STORE", 2, "single takes one scorer"),
    ("relabel --scorer clip --rule best --store STORE", 2, "unknown rule 'best'"),
    ("relabel --tie-band nan --store STORE", 2, "tie-band must be finite"),
    ("relabel --tie-band -1 --store STORE", 2, "tie-band must be finite"),
    ("relabel --max-unreadable 2 --store STORE", 2, "max-unreadable must be"),
    ("relabel --batch-size 0 --store STORE", 2, "batch-size must be between 1 and 100000"),
    ("store query --format xml select --store STORE", 2, "unknown format 'xml'"),
    ("store query --timeout nan select --store STORE", 2, "timeout must be above 0"),
    ("store query selct --store STORE", 2, "syntax error"),
    ("store query table(gone) --store STORE", 2, "syntax error"),
    ("train --labeler nobody --output-dir out --store STORE", 2, "unknown labeler 'nobody'; choose from me"),
    (
        "train --labeler silent --output-dir out --store STORE",
        2,
        "the labeler 'silent' has no labels; choose from me",
    ),
    (
        "train --labeler me --where margin>99 --output-dir out --store STORE",
        2,
        "me has no decided training pairs where margin>99; relax --where or label more pairs",
    ),
    ("train --labeler me --where marg>1 --output-dir out --store STORE", 2, "--where 'marg>1' cannot be used"),
    (
        "train --labeler me --learning-rate nan --output-dir out --store STORE",
        2,
        "learning-rate must be a finite number",
    ),
    ("train --labeler me --learning-rate -1 --output-dir out --store STORE", 2, "learning-rate must be above 0"),
    ("train --labeler me --beta inf --output-dir out --store STORE", 2, "beta must be a finite number"),
    (
        "train --labeler me --loss dbo --output-dir out --store STORE",
        2,
        "unknown loss 'dbo'; choose from dpo, sft, ipo, hinge, mapo, kto",
    ),
    ("train --labeler me --max-train-steps 0 --output-dir out --store STORE", 2, "max-train-steps must be at least 1"),
    ("train --labeler me --model shapez --output-dir out --store STORE", 1, "cannot find the model 'shapez'"),
]


@pytest.mark.parametrize(("line", "code", "message"), BAD, ids=[line for line, _, _ in BAD])
def test_a_mistake_ends_in_one_line_and_creates_nothing(
    filled: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, message: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "notes.txt").write_text("a red circle\n")
    before = logical_hashes(filled)
    ended = RUNNER.invoke(app, [str(filled.path) if word == "STORE" else word for word in line.split()])
    assert (ended.exit_code, ended.stdout) == (code, "")
    assert isinstance(ended.exception, SystemExit), "a traceback"
    (error,) = ended.stderr.splitlines()
    assert error.startswith("prefloop: ")
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "notes.txt"]
    assert logical_hashes(filled) == before


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize(
    "line",
    [
        "relabel --store stroe",
        "train --labeler me --where marg>1 --output-dir out --store STORE",
        "generate --prompts x",
    ],
)
def test_a_process_prints_the_same_line_without_importing_torch(filled: PairStore, tmp_path: Path, line: str):
    arguments = [str(filled.path) if word == "STORE" else word for word in line.split()]
    ended = prefloop(*arguments, cwd=tmp_path)
    assert ended.returncode in (1, 2)
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1
    assert ended.stderr.startswith("prefloop: ")
    assert list(tmp_path.iterdir()) == []
    if "generate" not in line:  # generate imports more to look for prompts
        assert slow_imports(*arguments, cwd=tmp_path)[1] == ""


def test_bad_sql_in_where_reads_no_file(filled: PairStore, tmp_path: Path):
    (tmp_path / "x.csv").write_text("a\n1\n")
    where = f"exists (from read_csv('{tmp_path}/x.csv'))"
    words = ["train", "--labeler", "me", "--output-dir", str(tmp_path / "out"), "--where", where]
    ended = RUNNER.invoke(app, [*words, "--store", str(filled.path)])
    assert ended.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_damaged_store_ends_with_5_and_rebuild_repairs_it(tmp_path: Path):
    store = PairStore.create(tmp_path / "store")
    fill(store)
    before = logical_hashes(store)
    os.truncate(store.database, 100)
    ended = RUNNER.invoke(app, ["store", "stats", "--store", str(store.path)])
    assert ended.exit_code == 5
    assert f"prefloop store rebuild --store {store.path}" in ended.stderr
    assert RUNNER.invoke(app, ["store", "rebuild", "--store", str(store.path)]).exit_code == 0
    assert logical_hashes(store) == before
    next((store.path / "images").rglob("*.png")).unlink()
    ended = RUNNER.invoke(app, ["store", "check", "--store", str(store.path)])
    assert ended.exit_code == 5
    assert "missing image: images/" in ended.stdout
    assert RUNNER.invoke(app, ["store", "check", "--no-images", "--store", str(store.path)]).exit_code == 0


def test_a_busy_store_ends_with_4(filled: PairStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prefloop.store.pairstore.LOCK_WAIT", 0.1)
    with filled.session(write=True):
        start = time.monotonic()
        ended = RUNNER.invoke(app, ["store", "stats", "--store", str(filled.path)])
    assert ended.exit_code == 4
    assert f"process {os.getpid()}" in ended.stderr
    assert time.monotonic() - start < 2


def test_results_are_on_stdout_and_json_is_valid(filled: PairStore):
    stats = RUNNER.invoke(app, ["store", "stats", "--json", "--store", str(filled.path)])
    counts = json.loads(stats.stdout)
    # 3 prompts with 2 images and 1 pair each
    assert (counts["prompts"], counts["images"], counts["pairs"], counts["labels"]) == (3, 6, 3, 3)
    listed = json.loads(RUNNER.invoke(app, ["store", "ls", "--json", "--store", str(filled.path)]).stdout)
    assert [(row["labeler"], row["labels"]) for row in listed["labelers"]] == [("me", 3), ("silent", 0)]
    query = ["store", "query", "-", "--format", "csv", "--store", str(filled.path)]
    assert RUNNER.invoke(app, query, input="select count(*) as n from pairs").stdout == "n\n3\n"


def test_a_dry_run_creates_and_generates_nothing(tiny_pipeline: Path, tmp_path: Path):
    words = ["generate", "--model", str(tiny_pipeline), "--prompts", "shapes", "--limit", "5", "--dry-run"]
    words += ["--images-per-prompt", "2"]
    ended = RUNNER.invoke(app, [*words, "--store", str(tmp_path / "new"), "--json"])
    # 10 images are one batch of 16
    summary = json.loads(ended.stdout)
    assert (summary["prompts"], summary["images"], summary["missing"], summary["batches"]) == (5, 10, 10, 1)
    # the usual defaults for a Stable Diffusion pipeline
    assert (summary["sampling"]["num_inference_steps"], summary["sampling"]["guidance_scale"]) == (25, 7.5)
    assert not (tmp_path / "new").exists()


def test_the_version_is_the_packages():
    ended = RUNNER.invoke(app, ["--version"])
    assert (ended.exit_code, ended.stdout) == (0, f"prefloop {package.__version__}\n")


EARLIER_NAMES = {
    "train": {
        "--labels": "--labeler",
        "--choice-model": "--labeler",
        "--beta-dpo": "--beta",
        "--unet-init": "--init-from",
        "--cache-reference": "--reference-draws",
        "--output": "--format",
    },
    "demo": {"--dir": "--output-dir"},
    "loop": {"--dir": "--output-dir"},
    "pair": {"--strategy": "--pairing"},
    "relabel": {
        "--weights": "--checkpoint",
        "--share": "--scorer-weight",
        "--pairs": "--select",
        "--max-bad": "--max-unreadable",
    },
    "eval": {"--against": "--baseline", "--weights": "--checkpoint", "--report": "--output-dir"},
    "generate": {"--pairs": "--pairing"},
    "label": {"--pairs": "--queue"},
    "store import": {"--max-bad": "--max-unreadable", "--max-pairs": "--pairs-per-prompt"},
    "store export": {"--labels": "--labeler"},
}
REQUIRED = {"store import": ["source"], "store export": ["out"]}


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [(command, old, new) for command, names in EARLIER_NAMES.items() for old, new in names.items()],
)
def test_an_earlier_name_of_an_option_still_works_and_is_not_in_the_help(command: str, old: str, new: str):
    def parsed(*options: str) -> dict[str, object]:
        click_command: Any = typer.main.get_command(app)
        for name in command.split():
            click_command = click_command.commands[name]
        return click_command.make_context(command, [*REQUIRED.get(command, []), *options]).params

    assert parsed(old, "7") == parsed(f"{old}=7") == parsed(new, "7") != parsed()
    text = RUNNER.invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"}).output
    assert re.search(rf"{old}\b(?!-)", text) is None
    assert re.search(rf"{new}\b(?!-)", text) is not None


def commands_of(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_option_has_words_and_no_help_shows_the_type_of_a_switch():
    found = list(commands_of(typer.main.get_command(app)))
    assert len(found) > 25
    for path, command in found:
        for parameter in command.params:
            assert getattr(parameter, "help", "an argument"), (path, parameter.name)
        shown = RUNNER.invoke(app, [*path, "--help"])
        assert shown.exit_code == 0
        assert "<bool>" not in shown.output, path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("prefloop relabel --rule m", {"mean-rank", "majority"}),
        ("prefloop relabel --scorer pick", {"pickscore"}),
        ("prefloop eval --scorer hps", {"hps", "hpsv2", "hpsv2.1", "hpsv3"}),
        ("prefloop generate --pairing a", {"all", "adjacent"}),
        ("prefloop pair --pairing ac", {"across-models"}),
        ("prefloop train --loss k", {"kto"}),
    ],
)
def test_a_shell_completes_values(typed: str, offered: set[str]):
    words = typed.split(" ")
    ended = RUNNER.invoke(
        app,
        [],
        prog_name="prefloop",
        env={"_PREFLOOP_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)},
    )
    assert set(ended.output.split()) == offered
