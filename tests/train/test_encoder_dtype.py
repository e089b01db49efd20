"""The dtype in which the VAE encodes: latents of each are apart, half precision is near float32, overflow is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from prefloop.core.errors import NumericalError, UsageError
from prefloop.train import TrainConfig
from prefloop.train.trainer import Trainer

Make = Callable[..., Trainer]


def latents(made: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the chosen images of six pairs, float32."""
    made.data.encode(0, 6)
    keys = [made.data.crop(sample.pair).key(sample.pair.chosen) for sample in made.data.samples(0, 6)]
    return made.data.latents.rows("mean", keys).float(), made.data.latents.rows("std", keys).float()


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("bfloat16", 0.02), ("float16", 0.004)],  # a few roundings of 2**-9 and 2**-12
)
def test_latents_in_half_precision_are_near_those_in_float32_and_not_mixed_with_them(
    trainer: Make, dtype: str, tolerance: float
):
    full, half = trainer(), trainer(vae_dtype=dtype)
    assert full.data.latents.folder != half.data.latents.folder
    for expected, rounded in zip(latents(full), latents(half), strict=True):
        difference = float((rounded - expected).norm() / expected.norm())
        assert 0 < difference < tolerance


def test_a_vae_that_overflows_in_float16_is_refused_with_what_to_do(trainer: Make, tmp_path: Path, tiny_pipeline: Path):
    vae = AutoencoderKL.from_pretrained(tiny_pipeline / "vae")
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 1e6
    vae.save_pretrained(tmp_path / "large")
    with pytest.raises(NumericalError, match=r"overflows in float16.*--vae-dtype bfloat16.*fp16-fix for SDXL"):
        trainer(vae=str(tmp_path / "large"), vae_dtype="float16")
    with torch.no_grad():
        vae.encoder.conv_in.weight.fill_(float("nan"))
    vae.save_pretrained(tmp_path / "damaged")
    with pytest.raises(NumericalError, match=r"not finite in float32; its weights may be damaged"):
        trainer(vae=str(tmp_path / "damaged"))


def test_a_run_goes_on_only_with_the_dtype_it_began_with(config: TrainConfig):
    assert replace(config, vae_dtype="bfloat16").identity() != config.identity()
    with pytest.raises(UsageError, match="unknown vae-dtype 'half'"):
        replace(config, vae_dtype="half")  # type: ignore[arg-type]
