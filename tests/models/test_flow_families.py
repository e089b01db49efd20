"""Each family of transformers, proven on tiny pipelines: what is trained is what its own pipeline generates with."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, PeftModel
from prefloop.core.signals import StopSignal
from prefloop.models.families import family_of
from prefloop.models.lora import add_adapter, lora_layers
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.batch import padded
from prefloop.train.trainer import Trainer
from torch import Tensor

SIDE = 32
STEPS = 2  # with one, a schedule that is stretched to a last sigma has no numbers
PROMPTS = ["a red circle", "blue", "a large green square above a small yellow circle"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline by its kind, saved once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny.saved(kind, tmp_path_factory.mktemp("flow") / kind)
        return made[kind]

    return folder


def loaded(folder: Path) -> Any:
    return load_pipeline(find_model(str(folder)), "cpu", torch.float32)


def encoded(family: Any, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    with torch.no_grad():
        rows = family.encode(pipeline, prompts)
    return padded({name: list(tensors) for name, tensors in rows.items()})


def without_guidance(family: Any, kind: str) -> dict[str, Any]:
    """Arguments of the pipeline with which it runs the model once a step, on the prompt alone."""
    scale = getattr(import_module(tiny.FLOW_KINDS[kind]), "UNGUIDED", 1.0)
    return {**family.call_settings, family.guidance_argument: scale}


def with_plain_steps(pipeline: Any) -> Any:
    """The pipeline with a scheduler whose steps follow from one prediction each: Euler's, or DDIM's from timesteps 500 and 0."""
    scheduler = pipeline.scheduler
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return pipeline
    if scheduler.config.prediction_type == "flow_prediction":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=scheduler.config.flow_shift)
        return pipeline
    settings = {"timestep_spacing": "leading", "steps_offset": 0, "clip_sample": False, "set_alpha_to_one": True}
    pipeline.scheduler = DDIMScheduler.from_config(scheduler.config, **settings)
    return pipeline


def denoised(pipeline: Any, noise: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The same steps by their formulas.

    Args:
        predict: from noisy latents and timesteps (B,).
    """
    scheduler, latents = pipeline.scheduler, noise
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigmas = torch.as_tensor(scheduler.sigmas).tolist()
        for sigma, end in pairwise(sigmas):
            latents = latents + (end - sigma) * predict(latents, torch.full((len(noise),), 1000 * sigma))
        return latents
    kept = [float(scheduler.alphas_cumprod[timestep]) for timestep in (500, 0)] + [1.0]
    for timestep, (before, after) in zip((500, 0), pairwise(kept), strict=True):
        epsilon = predict(latents, torch.full((len(noise),), timestep))
        image = (latents - (1 - before) ** 0.5 * epsilon) / before**0.5
        latents = after**0.5 * image + (1 - after) ** 0.5 * epsilon
    return latents


@pytest.mark.parametrize("kind", tiny.FLOW_KINDS)
def test_steps_of_the_pipeline_are_those_with_the_familys_prediction(folders: Callable[[str], Path], kind: str) -> None:
    family = family_of(find_model(str(folders(kind))))
    pipeline = with_plain_steps(loaded(folders(kind)))
    side = SIDE // family.vae_factor
    noise = torch.randn(2, family.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    shapes = import_module(tiny.FLOW_KINDS[kind])
    result = pipeline(
        prompt=PROMPTS[:2],
        num_inference_steps=STEPS,
        height=SIDE,
        width=SIDE,
        latents=shapes.packed(noise),
        output_type="latent",
        **without_guidance(family, kind),
    ).images
    conditions = family.conditions(encoded(family, pipeline, PROMPTS[:2]), torch.zeros(2, 4), (SIDE, SIDE))

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        with torch.no_grad():
            return family.predict(pipeline.transformer, latents, timesteps, conditions)

    stepped = denoised(pipeline, noise, predict)
    torch.testing.assert_close(shapes.unpacked(result, SIDE, SIDE), stepped, atol=1e-6, rtol=1e-5)
    unpredicted = denoised(pipeline, noise, lambda latents, _: torch.zeros_like(latents))
    assert (stepped - unpredicted).abs().mean() > 1e-3  # the model does something


@pytest.mark.parametrize("kind", tiny.FLOW_KINDS)
def test_latents_decode_to_the_image_that_the_vae_makes_of_them(folders: Callable[[str], Path], kind: str) -> None:
    family = family_of(find_model(str(folders(kind))))
    pipeline = with_plain_steps(loaded(folders(kind)))
    shapes = import_module(tiny.FLOW_KINDS[kind])
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        mean, std = family.latents(pipeline.vae, pixels)
        for parameter in pipeline.transformer.parameters():
            parameter.zero_()  # it predicts zero: the pipeline decodes what it was given, which DDIM takes to be scaled
    assert mean.shape == std.shape == (1, family.latent_channels, *[SIDE // family.vae_factor] * 2)
    euler = isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    scale = 1.0 if euler else float(pipeline.scheduler.alphas_cumprod[500]) ** 0.5
    image = pipeline(
        prompt=PROMPTS[:1],
        num_inference_steps=STEPS,
        height=SIDE,
        width=SIDE,
        latents=shapes.packed(mean * scale),
        output_type="pt",
        **without_guidance(family, kind),
    ).images
    with torch.no_grad():
        expected = shapes.reconstruction(pipeline.vae, pixels)
    torch.testing.assert_close(image, (expected / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", tiny.FLOW_KINDS)
def test_a_batch_of_ragged_prompts_equals_one_prompt_at_a_time(folders: Callable[[str], Path], kind: str) -> None:
    family, pipeline = family_of(find_model(str(folders(kind)))), loaded(folders(kind))
    side = SIDE // family.vae_factor
    noisy = torch.randn(3, family.latent_channels, side, side, generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([100.0, 500.0, 900.0])

    def predict(prompts: list[str], rows: slice) -> Tensor:
        n = len(prompts)
        conditions = family.conditions(encoded(family, pipeline, prompts), torch.zeros(n, 4), (SIDE, SIDE))
        with torch.no_grad():
            return family.predict(pipeline.transformer, noisy[rows], timesteps[rows], conditions)

    together = predict(PROMPTS, slice(None))
    alone = torch.cat([predict([prompt], slice(at, at + 1)) for at, prompt in enumerate(PROMPTS)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", tiny.FLOW_KINDS)
def test_a_family_says_whether_some_weights_of_a_lora_get_no_gradient(
    folders: Callable[[str], Path], kind: str
) -> None:
    """With several processes, torch raises in the second step if it was not told."""
    family = family_of(find_model(str(folders(kind))))
    model = loaded(folders(kind)).transformer.requires_grad_(False).train()
    add_adapter(model, LoraConfig(r=2, target_modules=lora_layers(model, None, family.lora_targets)))
    side = SIDE // family.vae_factor
    prompts = {name: torch.randn(2, *shape) for name, shape in family.prompt_shapes().items()}
    conditions = family.conditions(prompts, torch.zeros(2, 4), (SIDE, SIDE))
    noisy = torch.randn(2, family.latent_channels, side, side)
    family.predict(model, noisy, torch.tensor([100.0, 500.0]), conditions).square().mean().backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained
    assert any(weight.grad is None for weight in trained) == family.has_unused_weights


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("kind", tiny.FLOW_KINDS)
@pytest.mark.parametrize("rank", [0, 4])
def test_plain_diffusers_generates_with_a_result_what_the_policy_does(
    folders: Callable[[str], Path], labelled: PairStore, config: TrainConfig, kind: str, rank: int
) -> None:
    """The LoRA through load_lora_weights or peft, all weights through from_pretrained."""
    settings = replace(
        config, model=str(folders(kind)), lora_rank=rank, max_train_steps=2, learning_rate=1e-2, resolution=SIDE
    )
    Path(settings.output_dir).mkdir()
    trainer = Trainer(settings, labelled, StopSignal())
    trainer.train("run")
    pipeline = loaded(folders(kind))
    family = trainer.data.family

    def image(pipeline: Any) -> Tensor:
        return pipeline(
            prompt=PROMPTS[0],
            num_inference_steps=2,
            height=SIDE,
            width=SIDE,
            generator=torch.Generator().manual_seed(3),
            output_type="pt",
            **without_guidance(family, kind),
        ).images

    before = image(pipeline)
    pipeline.transformer = trainer.policy.component.eval()
    expected = image(pipeline)
    pipeline_class = type(pipeline)
    left_out = dict.fromkeys(family.settings.left_out)
    if rank:
        again = pipeline_class.from_pretrained(folders(kind), **left_out)
        if family.lora_loader:
            again.load_lora_weights(settings.output_dir, weight_name="pytorch_lora_weights.safetensors")
        else:
            again.transformer = PeftModel.from_pretrained(again.transformer, settings.output_dir)
    else:
        again = pipeline_class.from_pretrained(settings.output_dir, **left_out)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(image(again), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(image(loaded(Path(settings.output_dir))), expected, atol=1e-5, rtol=1e-4)
    assert (expected - before).abs().max() > 1e-4  # it was trained
