"""Before the first bar a command says what it will do: model, prompts, images, store, and the time of many images."""

from dataclasses import replace
from pathlib import Path

import prefloop.generate.announce as announce_module
import pytest
from prefloop.cli import app
from prefloop.generate.announce import announcement
from prefloop.generate.config import GenerateConfig
from prefloop.generate.stage import plan
from typer.testing import CliRunner


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> GenerateConfig:
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    prompts = str(tmp_path / "prompts.txt")
    return GenerateConfig(
        model=str(tiny_pipeline), prompts=prompts, images_per_prompt=2, num_inference_steps=2, guidance_scale=2.5
    )


def test_the_line_names_model_prompts_images_and_store(config: GenerateConfig):
    planned = plan(config, None)
    expected = f"generating 6 images with {config.model}, 2 for each of 3 prompts of {config.prompts} (2 steps, guidance 2.5), into pairs"
    assert announcement(planned, Path("pairs"), chosen_prompts=True) == expected
    half = replace(planned, missing=planned.missing[:4])
    line = announcement(half, Path("pairs"), chosen_prompts=True)
    assert line == expected.replace("6 images", "4 of 6 images (the store has the others)")
    assert announcement(replace(planned, missing=[]), Path("pairs"), chosen_prompts=True) is None


def test_the_built_in_prompts_come_with_how_to_take_fewer():
    line = announcement(plan(GenerateConfig(images_per_prompt=1, limit=3), None), Path("pairs"), chosen_prompts=False)
    assert (
        line
        == "generating 3 images with shapes, 1 for each of 3 prompts of shapes (10 steps, guidance 2.5), into pairs"
    )
    planned = plan(GenerateConfig(images_per_prompt=1), None)
    few = replace(planned, missing=planned.missing[:3])
    line = announcement(few, Path("pairs"), chosen_prompts=False)
    assert line is not None
    assert line.endswith(", into pairs; --prompts names others, --limit N uses the first N")


@pytest.mark.slow(reason="counts the operations of whole models")
def test_the_time_of_many_images_is_estimated(config: GenerateConfig, monkeypatch: pytest.MonkeyPatch):
    planned = plan(replace(config, device="cpu"), None)
    monkeypatch.setattr(announce_module, "MANY", len(planned.missing))
    line = announcement(planned, Path("pairs"), chosen_prompts=True)
    assert line is not None
    assert " on cpu without loading, prompts and decoding" in line.split("; about ")[1]


def test_generate_says_it_before_anything_else_and_not_again(tmp_path: Path, config: GenerateConfig):
    store = str(tmp_path / "pairs")
    words = ["--prompts", str(config.prompts), "--num-inference-steps", "1", "--device", "cpu", "--store", store]
    generate = ["generate", "--model", config.model, "--images-per-prompt", "2", *words]
    first, again = (CliRunner().invoke(app, generate).stderr for _ in range(2))
    assert first.startswith(f"generating 6 images with {config.model}, 2 for each of 3 prompts of ")
    assert "generating" not in again
