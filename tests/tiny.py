"""Tiny pipelines with random weights; their component classes and the structure of their configs are those of the real ones."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from prefloop.shapes.words import tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

KINDS = ("sd15", "sd21v", "sdxl", "sdxl-refiner", "sdxl-turbo")
FLOW_KINDS = {
    **dict.fromkeys(("sd3", "sd35", "sd35-without-t5"), "tiny_sd3"),
    **dict.fromkeys(("z-image", "z-image-turbo"), "tiny_zimage"),
    "flux2-klein": "tiny_flux2",
    **dict.fromkeys(("flux1-dev", "flux1-schnell"), "tiny_flux1"),
    "qwen-image": "tiny_qwen_image",
    **dict.fromkeys(("sana", "sana15"), "tiny_sana"),
    **dict.fromkeys(("pixart-sigma", "pixart-alpha"), "tiny_pixart"),
}
"""Kinds of pipelines with a transformer, and the module beside this one that makes them."""
_BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# as dicts, since the annotations of diffusers are narrower than what it takes
CODER: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "sample_size": 32,
}
_DENOISER: dict[str, Any] = {
    "sample_size": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}


def pipeline(kind: str) -> Any:
    """Generates 32 x 32 images from 4 x 4 latents; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind in FLOW_KINDS:
            return import_module(FLOW_KINDS[kind]).pipeline(kind)
        return _xl(kind) if kind.startswith("sdxl") else _sd(kind)


def saved(kind: str, folder: Path) -> Path:
    pipeline(kind).save_pretrained(folder)
    return folder


def clip_text(width: int) -> CLIPTextConfig:
    words: Any = tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        projection_dim=width,
    )


def _sd(kind: str) -> StableDiffusionPipeline:
    velocity: dict[str, Any] = {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False}
    epsilon: dict[str, Any] = {"skip_prk_steps": True}
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(**CODER),
        "unet": UNet2DConditionModel(**_DENOISER, cross_attention_dim=16, use_linear_projection=kind == "sd21v"),
        "text_encoder": CLIPTextModel(clip_text(16)),
        "tokenizer": tokenizer(),
        "scheduler": DDIMScheduler(**_BETAS, **velocity) if kind == "sd21v" else PNDMScheduler(**_BETAS, **epsilon),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _xl(kind: str) -> Any:
    refiner = kind == "sdxl-refiner"
    # added conditions: the pooled embedding, 24 wide, and 6 numbers (the refiner 5), each in 8 values
    added: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 8 * (5 if refiner else 6),
        "transformer_layers_per_block": 1,
        "use_linear_projection": True,
    }
    distilled: dict[str, Any] = {"timestep_spacing": "trailing"}
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(**CODER, scaling_factor=0.13025),
        "unet": UNet2DConditionModel(**_DENOISER, **added, cross_attention_dim=24 if refiner else 40),
        "text_encoder": None if refiner else CLIPTextModel(clip_text(16)),
        "text_encoder_2": CLIPTextModelWithProjection(clip_text(24)),
        "tokenizer": None if refiner else tokenizer(),
        "tokenizer_2": tokenizer(),
        "scheduler": EulerAncestralDiscreteScheduler(**_BETAS, **distilled)
        if kind == "sdxl-turbo"
        else EulerDiscreteScheduler(**_BETAS),
    }
    if refiner:
        return StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)
    return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=kind == "sdxl", add_watermarker=False)
