"""A frozen reference in half precision under mixed precision: half the memory, and the same errors to the bit."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cost_configs import DATA, N_WEIGHTS, SETTINGS, SPEED, TINY
from prefloop.models.cost.components import with_text_defaults
from prefloop.models.families import family_of
from prefloop.models.loading import load_component
from prefloop.models.resolve import find_model
from prefloop.train.cost.cost_model import CostModel
from prefloop.train.placement import in_float32, round_as_autocast, rounded_numel
from prefloop.train.trainer import Trainer
from torch import Tensor, nn

Make = Callable[..., Trainer]
KINDS = ("sd15", "sdxl", "sd35", "z-image", "flux2-klein", "flux1-dev", "qwen-image", "sana", "pixart-sigma")


@pytest.mark.parametrize("kind", KINDS)
def test_each_family_predicts_the_same_with_the_weights_that_autocast_rounds(kind: str, tmp_path: Path):
    model = find_model(str(tiny.saved(kind, tmp_path / kind)))
    family = with_text_defaults(family_of(model))
    whole = load_component(model).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in whole.named_parameters():  # norms begin at 1 and 0, which rounding does not change
        if "norm" in name:
            weight.data += 0.1 * torch.rand(weight.shape, generator=generator)
    rounded = copy.deepcopy(whole)
    round_as_autocast(rounded, torch.bfloat16)
    noisy = torch.randn(4, family.latent_channels, 4, 4, generator=generator)
    prompts = {name: torch.randn(4, *shape, generator=generator) for name, shape in family.prompt_shapes().items()}
    side = 4 * family.vae_factor
    conditions = family.conditions(prompts, torch.zeros(4, 4), (side, side))
    timesteps = torch.tensor([10.0, 300.0, 600.0, 900.0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one, two = (family.predict(part, noisy, timesteps, conditions) for part in (whole, rounded))
    assert torch.equal(one, two)
    n_half = sum(weight.numel() for weight in rounded.parameters() if weight.dtype == torch.bfloat16)
    assert n_half == rounded_numel(whole) > 0.9 * sum(weight.numel() for weight in whole.parameters())


def dtypes(component: Any) -> dict[str, set[torch.dtype]]:
    """Of weights in modules that autocast casts, and in others."""
    found: dict[str, set[torch.dtype]] = {"cast": set(), "other": set()}
    for module in component.modules():
        kind = "cast" if isinstance(module, nn.Linear | nn.Conv2d) else "other"
        found[kind] |= {weight.dtype for weight in module.parameters(recurse=False)}
    return found


def step_of(made: Trainer) -> tuple[Tensor, Tensor]:
    made.step()  # so that policy and reference differ
    (batch,) = made.data.batch(0, 4)
    errors = made.denoiser.reference_errors([batch])
    return torch.stack([errors.chosen, errors.rejected]), made.step()


def test_a_step_with_a_rounded_reference_is_the_same_to_the_bit(trainer: Make):
    rounded, whole = (trainer(mixed_precision="bf16") for _ in range(2))
    assert dtypes(rounded.policy._reference) == {"cast": {torch.bfloat16}, "other": {torch.float32}}
    assert dtypes(rounded.policy.component) == {"cast": {torch.float32}, "other": {torch.float32}}
    whole.policy._reference = load_component(whole.model).requires_grad_(False).eval()
    for one, two in zip(step_of(rounded), step_of(whole), strict=True):
        assert torch.equal(one, two)


def test_another_model_as_the_reference_is_rounded_too_and_without_mixed_precision_nothing_is(trainer: Make):
    other = trainer(mixed_precision="bf16").model.source
    made = trainer(mixed_precision="bf16", reference=other)
    assert dtypes(made.policy._reference)["cast"] == {torch.bfloat16}
    assert dtypes(trainer().policy._reference) == {"cast": {torch.float32}, "other": {torch.float32}}


def test_sample_images_are_generated_with_a_rounded_reference(trainer: Make):
    made = trainer(mixed_precision="bf16", sample_steps=1, n_samples=1)
    made.monitor.sample(1)
    assert (made.output / "samples" / "step-000001.png").exists()
    assert dtypes(made.policy._reference) == {"cast": {torch.bfloat16}, "other": {torch.float32}}


def test_weights_are_rounded_again_after_a_block_in_float32():
    linear = nn.Linear(2, 2).requires_grad_(False)
    module = nn.Sequential(linear, nn.LayerNorm(2))
    round_as_autocast(module, torch.bfloat16)
    before = linear.weight.clone()
    with in_float32(module):
        assert module(torch.ones(1, 2)).dtype == torch.float32
    assert torch.equal(linear.weight, before)
    assert linear.weight.dtype == torch.bfloat16


def test_the_estimate_counts_a_rounded_reference():
    costs = CostModel(TINY, DATA, SPEED)
    whole = costs.memory(SETTINGS)["forward and backward"]["reference"]
    rounded = costs.memory(replace(SETTINGS, mixed_precision="bf16"))["forward and backward"]["reference"]
    n_rounded = rounded_numel(costs.component(SETTINGS).model)
    assert 0.9 * N_WEIGHTS < n_rounded < N_WEIGHTS
    assert (whole, rounded) == (4 * N_WEIGHTS, 4 * N_WEIGHTS - 2 * n_rounded)
