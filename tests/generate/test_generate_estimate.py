"""What `generate --dry-run` says of time and disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.cli import app
from prefloop.generate.config import GenerateConfig
from prefloop.generate.estimate import describe, estimate, flops_per_image, precision_of
from prefloop.generate.stage import plan
from prefloop.models.cost.components import with_text_defaults
from prefloop.models.cost.speed import DeviceSpeed
from prefloop.models.families import family_of
from prefloop.models.model import Model
from prefloop.models.resolve import find_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner


@pytest.mark.slow(reason="counts the operations of whole models")
@pytest.mark.parametrize(
    ("kind", "guidance", "passes"), [("sd15", 7.5, 20), ("sd15", 1.0, 10), ("sd35", 4.5, 20), ("flux1-dev", 3.5, 10)]
)
def test_flops_are_those_of_a_forward_pass_for_each_step_and_twice_with_guidance(
    kind: str, guidance: float, passes: int, tmp_path: Path
):
    family = with_text_defaults(family_of(find_model(str(tiny.saved(kind, tmp_path / "model")))))
    config = GenerateConfig(num_inference_steps=10, guidance_scale=guidance)
    # torch's own counter, on the real weights
    model: Any = getattr(tiny.pipeline(kind), family.component)
    side = family.resolution // family.vae_factor
    prompts = {name: torch.zeros(1, *shape) for name, shape in family.prompt_shapes().items()}
    conditions = family.conditions(prompts, torch.zeros(1, 4), (family.resolution, family.resolution))
    # the counter does not know the CPU's own attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        family.predict(model, torch.zeros(1, family.latent_channels, side, side), torch.ones(1), conditions)
    assert flops_per_image(family, config) == pytest.approx(passes * counter.get_total_flops(), rel=0.02)


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_plan_is_estimated_by_its_missing_images(tiny_pipeline: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nc\n")
    config = GenerateConfig(model=str(tiny_pipeline), prompts=str(prompts), images_per_prompt=2, device="cpu")
    planned = plan(config, None)
    estimated = estimate(planned)
    assert estimated is not None
    assert estimated.flops == 6 * estimated.flops_per_image
    assert estimated.bytes_on_disk == 6 * 32 * 32 * 1.5
    assert estimated.seconds > 0
    fewer = estimate(replace(planned, missing=planned.missing[:2]))
    assert fewer is not None
    assert fewer.flops == 2 * estimated.flops_per_image
    words = ["generate", "--model", config.model, "--prompts", str(prompts), "--dry-run", "--device", "cpu"]
    words += ["--store", str(tmp_path / "none"), "--images-per-prompt", "2"]
    text = CliRunner().invoke(app, words).stdout
    assert "6 images for 3 prompts, 6 of them missing, in 1 batch; about " in text
    assert "TFLOP per image; an estimate" in text
    values = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["estimate"]
    assert values["flops"] == estimated.flops


def test_a_model_of_no_family_has_no_estimate_and_the_text_says_so(tiny_pipeline: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n")
    planned = plan(GenerateConfig(model=str(tiny_pipeline), prompts=str(prompts)), None)
    model: Model = replace(planned.model)
    index = planned.model.settings.index | {"_class_name": "SomeOtherPipeline"}
    model.__dict__["settings"] = replace(planned.model.settings, index=index)
    assert estimate(replace(planned, model=model)) is None
    assert describe(None, "SomeOtherPipeline") == (
        "how long that takes is not known: the cost of a SomeOtherPipeline cannot be counted"
    )


def test_auto_is_half_precision_on_a_gpu_only(tiny_pipeline: Path):
    family = family_of(find_model(str(tiny_pipeline)))
    gpu, cpu = (DeviceSpeed(device, {}, 0.5) for device in ("cuda:0", "cpu"))
    assert [precision_of(name, family, gpu) for name in ("auto", "bfloat16", "float32")] == ["fp16", "bf16", "no"]
    assert precision_of("auto", family, cpu) == "no"
