"""What earlier versions called things still works in files, stores and folders; and what a new name decides."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from prefloop.cli import app
from prefloop.core.errors import UsageError
from prefloop.core.options import config_fields
from prefloop.core.settings import settings_of
from prefloop.eval.config import RENAMED as EVAL_RENAMED
from prefloop.eval.config import EvalConfig
from prefloop.loop.config import LoopConfig
from prefloop.loop.settings_file import SETTINGS, claimed, read_loop, write_settings
from prefloop.train.config import RENAMED, TrainConfig
from typer.testing import CliRunner


def trained_by(**settings: Any) -> TrainConfig:
    return TrainConfig(output_dir="out", labelers=("me",), **settings)


def test_a_loops_file_may_use_earlier_names(tmp_path: Path):
    file = tmp_path / "loop.toml"
    file.write_text('[loop]\ndir = "here"\n[train]\noutput = "lora"\n')
    settings = read_loop(str(file))
    assert (settings.loop.output_dir, settings.train["format"]) == ("here", "lora")
    assert read_loop(str(file), {}, ["loop.dir=there"]).loop.output_dir == "there"
    file.write_text('[loop]\ndir = "here"\noutput_dir = "there"\n')
    with pytest.raises(UsageError, match="sets output_dir twice"):
        read_loop(str(file))


def test_a_loop_that_an_earlier_version_began_goes_on(tmp_path: Path):
    settings = read_loop(None, {"output_dir": str(tmp_path / "loop")}, ["train.format=lora"])
    (tmp_path / "loop" / "round-1").mkdir(parents=True)
    (tmp_path / "loop" / "round-1" / "metrics.csv").write_text("")  # training began, so its settings count
    write_settings(settings)
    kept = tmp_path / "loop" / SETTINGS
    values = json.loads(kept.read_text())
    values["loop"]["dir"] = values["loop"].pop("output_dir")
    values["loop"].pop("device")
    values["train"]["output"] = values["train"].pop("format")
    kept.write_text(json.dumps(values))
    with claimed(settings):
        pass
    values["train"]["output"] = "pipeline"
    kept.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r'train\.format was "pipeline" and is "lora"'), claimed(settings):
        pass


def test_the_settings_of_an_evaluation_in_a_store_may_have_earlier_names():
    found = settings_of("a run", {"models": ["a"], "report": "r", "against": "b"}, EvalConfig, "eval", EVAL_RENAMED)
    assert found == {"models": ("a",), "output_dir": "r", "baseline": "b"}


def test_a_recipe_may_say_output():
    assert settings_of("a file", {"output": "kohya"}, TrainConfig, "train", RENAMED) == {"format": "kohya"}


def test_cpu_is_the_earlier_form_of_device_cpu():
    assert [trained_by(**given).on_cpu for given in ({}, {"cpu": True}, {"device": "cpu"}, {"device": "cuda"})] == [
        False,
        True,
        True,
        False,
    ]
    with pytest.raises(UsageError, match="--cpu is --device cpu, and the device is cuda"):
        trained_by(cpu=True, device="cuda")
    with pytest.raises(UsageError, match="choose from cuda, mps, cpu"):
        trained_by(device="gpu")
    command: Any = typer.main.get_command(app)
    assert command.commands["train"].make_context("train", ["--cpu"]).params["cpu"] is True
    assert "--cpu" not in CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output


def test_where_a_run_writes_and_runs_does_not_change_what_it_is():
    assert trained_by().identity() == trained_by(device="cpu", format="lora", cpu=True).identity()


def test_the_device_of_a_loop_is_that_of_its_stages_unless_they_have_their_own():
    settings = read_loop(None, {"device": "cpu"}, ["eval.device=cuda"])
    stages = (
        settings.generate_config(1),
        settings.relabel_config(),
        settings.train_config(1, "me"),
        settings.eval_config(1, "base"),
    )
    assert [stage.device for stage in stages] == ["cpu", "cpu", "cpu", "cuda"]
    assert LoopConfig().device is None


def test_the_layers_of_a_lora_can_be_several_on_the_command_line_and_in_a_file():
    field = {field.name: field for field in config_fields(TrainConfig)}["lora_targets"]
    assert (field.option, field.repeated, field.default) == ("--lora-target", True, None)
    for given in (["to_q", "to_k"], "to_q"):
        found = settings_of("a file", {"lora_targets": given}, TrainConfig, "train", RENAMED)
        assert found == {"lora_targets": ("to_q", "to_k") if isinstance(given, list) else ("to_q",)}
    assert settings_of("a file", {"lora_target": "to_q"}, TrainConfig, "train") == {"lora_targets": ("to_q",)}


def test_a_folder_to_write_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    both = CliRunner().invoke(app, ["store", "backup", "one", "--output-dir", "two"])
    assert (both.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "two folders to write are named, two and one" in both.stderr
