"""Tiny pipelines of PixArt-Sigma and PixArt-Alpha, as tiny.py has them for U-Nets."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from tiny import CODER
from tiny_sd3 import packed, reconstruction, t5, unpacked

__all__ = ["packed", "pipeline", "reconstruction", "unpacked"]


def pipeline(kind: str) -> Any:
    """Alpha's transformer is told the size of the image, as those made for latents of 128 x 128 are."""
    encoder, words = t5(24)
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(**CODER, latent_channels=4, scaling_factor=0.13025),
        "transformer": PixArtTransformer2DModel(
            sample_size=128 if kind == "pixart-alpha" else 4,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=24,
            interpolation_scale=1,
            use_additional_conditions=kind == "pixart-alpha",
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "scheduler": DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    }
    return (PixArtAlphaPipeline if kind == "pixart-alpha" else PixArtSigmaPipeline)(**parts)
