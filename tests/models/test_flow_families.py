"""Each family of flow-matching models, proven on tiny pipelines: what is trained is what its own pipeline generates with."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.core.signals import StopSignal
from prefloop.models.families import family_of
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.data import padded
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


@pytest.mark.parametrize("kind", tiny.FLOW_KINDS)
def test_steps_of_the_pipeline_are_those_with_the_familys_prediction(folders: Callable[[str], Path], kind: str) -> None:
    family, pipeline = family_of(find_model(str(folders(kind)))), loaded(folders(kind))
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
    stepped = noise
    for sigma, end in pairwise(pipeline.scheduler.sigmas.tolist()):
        with torch.no_grad():
            predicted = family.predict(pipeline.transformer, stepped, torch.full((2,), 1000 * sigma), conditions)
        stepped = stepped + (end - sigma) * predicted
    torch.testing.assert_close(shapes.unpacked(result, SIDE, SIDE), stepped, atol=1e-6, rtol=1e-5)
    assert (stepped - noise).abs().mean() > 1e-3  # the model does something


@pytest.mark.parametrize("kind", tiny.FLOW_KINDS)
def test_latents_decode_to_the_image_that_the_vae_makes_of_them(folders: Callable[[str], Path], kind: str) -> None:
    family, pipeline = family_of(find_model(str(folders(kind)))), loaded(folders(kind))
    shapes = import_module(tiny.FLOW_KINDS[kind])
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        mean, std = family.latents(pipeline.vae, pixels)
        for parameter in pipeline.transformer.parameters():
            parameter.zero_()  # a velocity of zero: the pipeline decodes what it was given
    assert mean.shape == std.shape == (1, family.latent_channels, *[SIDE // family.vae_factor] * 2)
    image = pipeline(
        prompt=PROMPTS[:1],
        num_inference_steps=STEPS,
        height=SIDE,
        width=SIDE,
        latents=shapes.packed(mean),
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
@pytest.mark.parametrize("rank", [0, 4])
def test_plain_diffusers_generates_with_a_result_what_the_policy_does(
    folders: Callable[[str], Path], labelled: PairStore, config: TrainConfig, kind: str, rank: int
) -> None:
    """The LoRA through load_lora_weights, all weights through from_pretrained."""
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
        again.load_lora_weights(settings.output_dir, weight_name="pytorch_lora_weights.safetensors")
    else:
        again = pipeline_class.from_pretrained(settings.output_dir, **left_out)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(image(again), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(image(loaded(Path(settings.output_dir))), expected, atol=1e-5, rtol=1e-4)
    assert (expected - before).abs().max() > 1e-4  # it was trained
