"""Pipelines with random weights and the configs of Stable Diffusion 1.5 and XL, full size or narrower, and pairs to train on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..shapes.words import tokenizer
from ..store import PairStore, prompt_id
from ..store.images import png_bytes
from ..store.pairstore import new_pair

LABELER = "bench"
TOKENS = 77  # per prompt, including padding
_BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Size:
    resolution: int
    """Side length in pixels."""
    pairs: int
    """Pairs per optimizer step."""
    divisor: int = 1
    """Divides every width and number of heads."""
    is_xl: bool = False


SIZES = {
    "tiny": Size(64, pairs=2, divisor=16),
    "small": Size(256, pairs=4, divisor=4),
    "sd15": Size(512, pairs=16),
    "sdxl": Size(1024, pairs=4, is_xl=True),
}


def save_pipeline(size: Size, folder: Path) -> None:
    """Write random float32 weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (_sdxl() if size.is_xl else _sd15(size)).save_pretrained(folder)


def save_pairs(store: PairStore, size: Size, n_pairs: int) -> None:
    """Add labelled pairs of noise images to the store, each with its own prompt."""
    generator = np.random.default_rng(0)
    store.append("labelers", [{"labeler": LABELER, "kind": "human", "config": "{}"}])
    for number in range(n_pairs):
        prompt = f"a red circle left of a blue square, number {number}"
        store.add_prompts([(prompt, {})])
        rows = []
        for _ in range(2):
            noise = generator.integers(0, 256, (size.resolution, size.resolution, 3), dtype=np.uint8)
            rows.append(store.write_image(png_bytes(Image.fromarray(noise)), size.resolution, size.resolution))
        pair = new_pair(prompt_id(prompt), rows[0]["image_id"], rows[1]["image_id"], "import")
        assert pair is not None
        store.append("images", rows)
        store.append("pairs", [pair])
        store.append("labels", [{"pair_id": pair["pair_id"], "labeler": LABELER, "revision": 0, "choice": "a"}])
    store.ingest()


def _sd15(size: Size) -> StableDiffusionPipeline:
    d = size.divisor
    parts: dict[str, Any] = {
        "vae": _vae(size),
        "unet": UNet2DConditionModel(
            sample_size=size.resolution // 8,
            block_out_channels=(320 // d, 640 // d, 1280 // d, 1280 // d),
            norm_num_groups=32 // d,
            attention_head_dim=max(1, 8 // d),  # the number of heads, despite its name
            cross_attention_dim=768 // d,
        ),
        "text_encoder": CLIPTextModel(_text(768 // d, 12, max(1, 12 // d), "quick_gelu")),
        "tokenizer": _tokenizer(),
        "scheduler": PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _sdxl() -> StableDiffusionXLPipeline:
    unet: dict[str, Any] = {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    parts: dict[str, Any] = {
        "vae": _vae(SIZES["sdxl"]),
        "unet": UNet2DConditionModel(**unet),
        "text_encoder": CLIPTextModel(_text(768, 12, 12, "quick_gelu")),
        "text_encoder_2": CLIPTextModelWithProjection(_text(1280, 32, 20, "gelu")),
        "tokenizer": _tokenizer(),
        "tokenizer_2": _tokenizer(),
        "scheduler": EulerDiscreteScheduler(**_BETAS),
    }
    return StableDiffusionXLPipeline(**parts, add_watermarker=False)


def _vae(size: Size) -> AutoencoderKL:
    d = size.divisor
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128 // d, 256 // d, 512 // d, 512 // d),
        "layers_per_block": 2,
        "norm_num_groups": 32 // d,
        "sample_size": size.resolution,
        "scaling_factor": 0.13025 if size.is_xl else 0.18215,
    }
    return AutoencoderKL(**config)


def _text(width: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
    words: Any = _tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def _tokenizer() -> Any:
    words = tokenizer()
    words.model_max_length = TOKENS
    return words
