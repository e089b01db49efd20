"""Memory that runs out in the VAE costs no denoising step: the latents are decoded again, fewer at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from prefloop.core.errors import PrefloopError
from prefloop.generate.config import GenerateConfig
from prefloop.generate.decode import SparingDecoder
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import Plan, plan


class Memory:
    """Lets a VAE's decoder run out of memory above a number of latents, and counts how often it ran."""

    def __init__(self, vae: Any) -> None:
        self.holds, self.runs = 10**9, []
        decoder = vae.decoder
        decoder.register_forward_pre_hook(self._check)

    def _check(self, _: Any, inputs: tuple[Any, ...]) -> None:
        latents = inputs[0]
        if latents.shape[0] * latents.shape[-2] * latents.shape[-1] > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.runs.append(latents.shape[0])


def planned(model: Path, n: int, **settings: Any) -> Plan:
    prompts = model.parent / "five.txt"
    prompts.write_text("\n".join(f"a red circle {number}" for number in range(n)))
    return plan(
        GenerateConfig(
            model=str(model), prompts=str(prompts), images_per_prompt=1, num_inference_steps=2, device="cpu", **settings
        ),
        None,
    )


def images_of(sampler: ImageSampler, plan: Plan) -> list[np.ndarray]:
    return [np.asarray(image, np.int64) for _, images in sampler.batches(plan.missing) for image in images]


def test_a_batch_that_does_not_fit_into_the_vae_is_not_denoised_again(
    tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
):
    five = planned(tiny_pipeline, 5, batch_size=5)
    sampler = ImageSampler(five.model, five.config)
    denoised: list[int] = []
    sampler.pipeline.unet.register_forward_pre_hook(lambda _, inputs: denoised.append(len(inputs[0])))
    memory = Memory(sampler.pipeline.vae)
    calm = images_of(sampler, five)
    steps, memory.runs, memory.holds = len(denoised), [], 2 * 4 * 4  # two images of 4 x 4 latents
    scarce = images_of(sampler, five)
    assert memory.runs == [2, 2, 1]
    assert capsys.readouterr().err == "out of memory in the VAE; decoding 2 at a time\n"
    assert len(denoised) == 2 * steps
    assert sampler.batch_size == 5
    for before, after in zip(calm, scarce, strict=True):
        assert np.abs(before - after).max() <= 1  # float rounding
    memory.runs = []
    images_of(sampler, five)
    assert memory.runs == [2, 2, 1]  # it remembers
    assert capsys.readouterr().err == ""


def test_a_single_image_that_does_not_fit_into_the_vae_ends_the_command(tiny_pipeline: Path):
    two = planned(tiny_pipeline, 2)
    sampler = ImageSampler(two.model, two.config)
    Memory(sampler.pipeline.vae).holds = 4 * 4 - 1
    with pytest.raises(PrefloopError, match="when the VAE decodes a single image; give a smaller --resolution"):
        images_of(sampler, two)
    assert sampler.batch_size == 32  # fewer prompts at once would not help


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux2-klein", "qwen-image", "sana"])
def test_the_vae_of_each_kind_of_model_decodes_in_slices(kind: str):
    vae = tiny.pipeline(kind).vae
    channels = vae.config.z_dim if "z_dim" in vae.config else vae.config.latent_channels
    shape = (3, channels, 1, 4, 4) if kind == "qwen-image" else (3, channels, 4, 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    memory = Memory(vae)
    sparing = SparingDecoder(vae)
    with torch.no_grad():
        whole, (pair,) = vae.decode(latents).sample, vae.decode(latents, return_dict=False)
        memory.runs, memory.holds = [], 1 * 4 * 4
        assert torch.allclose(sparing(latents).sample, whole, atol=1e-5)
        assert torch.allclose(sparing(latents, return_dict=False)[0], pair, atol=1e-5)
    assert memory.runs == [1] * 6
