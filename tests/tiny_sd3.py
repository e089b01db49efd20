"""Tiny pipelines of Stable Diffusion 3 and 3.5, as tiny.py has them for U-Nets."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from prefloop.shapes.words import tokenizer
from tiny import CODER, clip_text
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer


def packed(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the pipeline's `latents` argument takes them."""
    return latents


def unpacked(latents: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG001
    """What the pipeline returns for output_type "latent", as (B, C, h, w)."""
    return latents


def t5(width: int) -> tuple[Any, Any]:
    """A T5 encoder and a tokenizer of single letters that ends texts as T5's does."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 "
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    tokenizer_class: Any = T5Tokenizer
    words = tokenizer_class(vocab=pieces, extra_ids=0, model_max_length=512)
    config = T5Config(vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5EncoderModel(config), words


def pipeline(kind: str) -> StableDiffusion3Pipeline:
    """Its transformer is 40 wide for text: 16 and 24 of the CLIP encoders, or T5's 48 with theirs padded."""
    encoder, words = (None, None) if kind == "sd35-without-t5" else t5(48)
    newer: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    transformer: dict[str, Any] = {} if kind == "sd3" else newer
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(**CODER, latent_channels=4, scaling_factor=1.5305, shift_factor=0.0609),
        "transformer": SD3Transformer2DModel(
            **transformer,
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=40,
            pos_embed_max_size=8,
        ),
        "text_encoder": CLIPTextModelWithProjection(clip_text(16)),
        "text_encoder_2": CLIPTextModelWithProjection(clip_text(24)),
        "text_encoder_3": encoder,
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(),
        "tokenizer_3": words,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return StableDiffusion3Pipeline(**parts)


def reconstruction(vae: Any, pixels: Tensor) -> Tensor:
    """What the VAE makes of pixels (B, 3, H, W) in [-1, 1] by itself."""
    return vae.decode(vae.encode(pixels).latent_dist.mean).sample
