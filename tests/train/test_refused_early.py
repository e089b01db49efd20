"""What cannot be trained is refused by the command before torch is loaded, in one line, and nothing is created."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from prefloop.cli import app
from prefloop.store import PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.run_folder.location import refuse_overlap
from prefloop.train.run_folder.marker import write_marker
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved("pixart-sigma", tmp_path_factory.mktemp("models") / "pixart")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--fsdp", "--lora-rank", "0", "--loss", "sft", "--learning-rate", "1e-5"),
            "this is the only one; start it with `torchrun",
        ),
        (("--kohya", "--lora-rank", "2"), "kohya is a format for the LoRAs of U-Nets; "),
        (("--format", "kohya", "--lora-rank", "2"), "kohya is a format for the LoRAs of U-Nets; "),
        (("--format", "unet"), "has a transformer; give --format transformer"),
        (("--resolution", "24"), "resolution must be a multiple of 16 for a PixArtSigmaPipeline, got 24"),
    ],
)
def test_the_command_refuses_before_it_loads_what_trains(
    labelled: PairStore,
    tmp_path: Path,
    transformer: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: str,
):
    monkeypatch.setattr("prefloop.train.stage.train", lambda *_, **__: pytest.fail("training started"))
    given = ["--labeler", "redder", "--model", str(transformer), "--output-dir", str(tmp_path / "tuned"), "--cpu"]
    result = CliRunner().invoke(app, ["train", "--store", str(labelled.path), *given, *options])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert words in line
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("name", ["checkpoint-3", ".run", ".previous", ".result.tmp", "checkpoint-3/deeper"])
def test_a_run_does_not_begin_in_what_another_run_removes(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, name: str
):
    from prefloop.models.resolve import find_model

    model = find_model(config.model)
    inner = replace(config, output_dir=str(tmp_path / "other" / name / "tuned"))
    refuse_overlap(inner, labelled.path, model)  # a folder of that name, where no run is
    (tmp_path / "other").mkdir()
    write_marker(tmp_path / "other")
    with pytest.raises(UsageError, match=r"is in .* of the run in .*other, .*; name another folder with --output-dir"):
        refuse_overlap(inner, labelled.path, model)
    refuse_overlap(replace(config, output_dir=str(tmp_path / "other" / "inner")), labelled.path, model)
