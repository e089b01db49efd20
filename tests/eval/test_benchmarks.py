"""Benchmarks: options of eval from a file."""

import json
import shutil
from pathlib import Path

import pytest
from prefloop.cli import app
from prefloop.eval import EvalConfig
from prefloop.eval.benchmarks import benchmarks, read_benchmark
from prefloop.generate.prompt_sets.registry import set_names
from prefloop.store import PairStore, UsageError
from typer.testing import CliRunner


def test_every_benchmark_names_prompts_that_are_known_and_makes_a_config():
    assert {"parti-win-rate", "hpsv2-win-rate", "pickapic-win-rate", "shapes-win-rate"} <= benchmarks().keys()
    for name, description in benchmarks().items():
        settings = read_benchmark(name)
        assert settings["prompts"] in {*set_names(), "shapes-heldout"}
        assert EvalConfig(models=("m",), **settings).prompts == settings["prompts"]
        assert description.endswith(("prompt", "successors", "oracle"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("images_per_prompt = 2", "sets no prompts, which a benchmark needs"),
        (
            'prompts = "x"\nmodel = "y"',
            "sets models, which belongs to the models that are compared; give it on the command line",
        ),
        ('prompts = "x"\nunknown = 1', "sets 'unknown', which is not an option; `prefloop eval --help` lists them"),
        ("prompts = 1", "prompts"),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path: Path, text: str, line: str):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=line):
        read_benchmark(str(tmp_path / "mine.toml"))


def test_an_unknown_benchmark_lists_those_there_are(tmp_path: Path):
    with pytest.raises(
        UsageError, match=r"no file and no benchmark is called 'x'; benchmarks are hpsv2-win-rate, parti"
    ):
        read_benchmark("x")
    with pytest.raises(UsageError, match="is a folder; name a benchmark or a TOML file"):
        read_benchmark(str(tmp_path))


@pytest.mark.slow(reason="generates and judges images")
def test_the_command_line_wins_over_the_benchmark(store: PairStore, tiny_pipeline: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "mine.toml").write_text(
        f'prompts = "{tmp_path / "prompts.txt"}"\nscorers = "little_scorers:Redness"\nnum_inference_steps = 1\nlimit = 3\n'
    )
    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    (other / "note.json").write_text("{}")
    words = [
        "eval",
        "--model",
        str(other),
        "--baseline",
        str(tiny_pipeline),
        "--benchmark",
        str(tmp_path / "mine.toml"),
    ]
    ended = CliRunner().invoke(app, [*words, "--limit", "2", "--json", "--store", str(store.path)])
    assert ended.exit_code == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["n_prompts"], list(result["scorers"])) == (2, ["redness"])
    assert result["sampling"]["num_inference_steps"] == 1
