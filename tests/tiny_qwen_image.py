"""A tiny pipeline of Qwen-Image, as tiny.py has them for U-Nets."""

from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

# of the pipeline's template, whose beginning is 34 tokens of the real tokenizer and of this one: the pipeline drops 34
WORDS = (
    "Ċ Ġthe Ġimage Ġby Ġdetailing Ġcolor Ġshape Ġsize Ġtexture Ġquantity Ġtext Ġspatial Ġrelationships Ġof Ġobjects Ġand "
    "Ġbackground Describe system user assistant"
)
MEAN, STD = [-0.8, 0.1, 1.5, 0.4], [2.8, 1.4, 3.2, 0.7]
"""Of the latents' channels."""


def packed(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the pipeline's `latents` argument takes them."""
    n, channels, height, width = latents.shape
    return QwenImagePipeline._pack_latents(latents, n, channels, height, width)


def unpacked(latents: Tensor, height: int, width: int) -> Tensor:
    """What the pipeline returns for output_type "latent", as (B, C, h, w)."""
    return QwenImagePipeline._unpack_latents(latents, height, width, 8)[:, :, 0]


def tokenizer() -> Any:
    """Bytes, and each word of the template as one token."""
    vocabulary = dict.fromkeys([*sorted(ByteLevel.alphabet()), *WORDS.split()])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        for end in range(1, len(word)):
            vocabulary[word[: end + 1]] = None
            merges[word[:end], word[end]] = None
    kind: Any = Qwen2Tokenizer
    return kind(
        vocab={piece: number for number, piece in enumerate(vocabulary)},
        merges=list(merges),
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=131072,
    )


def text_encoder(vocabulary: int) -> Qwen2_5_VLForConditionalGeneration:
    """Two layers, 32 wide, with grouped queries: four heads of queries and two of keys; and its vision tower."""
    text: dict[str, Any] = {
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    }
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def pipeline(kind: str) -> QwenImagePipeline:  # noqa: ARG001
    """It generates 32 x 32 images from 4 x 4 latents of 4 channels, cut into 2 x 2 patches."""
    words = tokenizer()
    parts: dict[str, Any] = {
        "vae": AutoencoderKLQwenImage(base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=MEAN, latents_std=STD),
        "transformer": QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
        "text_encoder": text_encoder(len(words)),
        "tokenizer": words,
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
    }
    return QwenImagePipeline(**parts)


def reconstruction(vae: Any, pixels: Tensor) -> Tensor:
    """What the VAE makes of pixels (B, 3, H, W) in [-1, 1] by itself."""
    return vae.decode(vae.encode(pixels[:, :, None]).latent_dist.mean).sample[:, :, 0]
