"""Tiny pipelines of FLUX.2 [klein], as tiny.py has them for U-Nets."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tiny import CODER
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

CHANNELS = 16  # of 4 in patches of 2 x 2
MEAN, VARIANCE = torch.linspace(-0.5, 0.5, CHANNELS), torch.linspace(0.5, 2.0, CHANNELS)
EPS = 1e-2
# as Qwen3's: a turn for each message, and thoughts that are empty if thinking is off
CHAT_TEMPLATE = """
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}
""".strip()


def packed(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the pipeline's `latents` argument takes them."""
    return latents


def unpacked(latents: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG001
    """What the pipeline returns for output_type "latent", the VAE's own latents, as (B, C, h, w)."""
    patches: Tensor = Flux2KleinPipeline._patchify_latents(latents)
    return (patches - MEAN[:, None, None]) / (VARIANCE[:, None, None] + EPS).sqrt()


def qwen3() -> tuple[Any, Any]:
    """Qwen3 with grouped-query attention and more than 27 layers, for 64 tokens, and a tokenizer of single bytes."""
    letters = sorted(ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    vocabulary = {word: number for number, word in enumerate([*letters, *special])}
    tokenizer_class: Any = Qwen2Tokenizer
    words = tokenizer_class(
        vocab=vocabulary,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special[1:],
        model_max_length=131072,
    )
    words.chat_template = CHAT_TEMPLATE
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config), words


def pipeline(kind: str) -> Flux2KleinPipeline:  # noqa: ARG001
    """The base model. Its latents are not of mean 0 and variance 1, so that the statistics in the VAE matter."""
    encoder, words = qwen3()
    vae = AutoencoderKLFlux2(**CODER, latent_channels=CHANNELS // 4, batch_norm_eps=EPS)
    vae.bn.running_mean, vae.bn.running_var = MEAN.clone(), VARIANCE.clone()
    parts: dict[str, Any] = {
        "vae": vae,
        "transformer": Flux2Transformer2DModel(
            in_channels=CHANNELS,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }
    return Flux2KleinPipeline(**parts, is_distilled=False)


def reconstruction(vae: Any, pixels: Tensor) -> Tensor:
    """What the VAE makes of pixels (B, 3, H, W) in [-1, 1] by itself."""
    return vae.decode(vae.encode(pixels).latent_dist.mode()).sample
