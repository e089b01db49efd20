"""Tiny pipelines of FLUX.1, as tiny.py has them for U-Nets."""

from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from prefloop.shapes.words import tokenizer
from tiny import CODER, clip_text
from tiny_sd3 import t5
from torch import Tensor
from transformers import CLIPTextModel


def packed(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the pipeline's `latents` argument takes them."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def unpacked(latents: Tensor, height: int, width: int) -> Tensor:
    """What the pipeline returns for output_type "latent", as (B, C, h, w)."""
    return FluxPipeline._unpack_latents(latents, height, width, 8)


def pipeline(kind: str) -> FluxPipeline:
    """flux1-dev or flux1-schnell."""
    encoder, words = t5(16)
    guided = kind == "flux1-dev"
    dynamic: dict[str, Any] = {"shift": 3.0, "use_dynamic_shifting": True} if guided else {"shift": 1.0}
    vae: dict[str, Any] = {"use_quant_conv": False, "use_post_quant_conv": False}
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(**CODER, **vae, latent_channels=4, scaling_factor=0.3611, shift_factor=0.1159),
        "transformer": FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=guided,
            axes_dims_rope=(2, 2, 4),
        ),
        "text_encoder": CLIPTextModel(clip_text(16)),
        "text_encoder_2": encoder,
        "tokenizer": tokenizer(),
        "tokenizer_2": words,
        "scheduler": FlowMatchEulerDiscreteScheduler(**dynamic),
    }
    return FluxPipeline(**parts)


def reconstruction(vae: Any, pixels: Tensor) -> Tensor:
    """What the VAE makes of pixels (B, 3, H, W) in [-1, 1] by itself."""
    return vae.decode(vae.encode(pixels).latent_dist.mean).sample
