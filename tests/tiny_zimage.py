"""Tiny pipelines of Z-Image and Z-Image-Turbo, as tiny.py has them for U-Nets."""

from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tiny import CODER
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

UNGUIDED = 0.0
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def packed(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the pipeline's `latents` argument takes them."""
    return latents


def unpacked(latents: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG001
    """What the pipeline returns for output_type "latent", as (B, C, h, w)."""
    return latents


def qwen3(width: int) -> tuple[Qwen3Model, Any]:
    """A Qwen3 model with fewer heads of keys than of queries, and a tokenizer of single bytes with a chat template."""
    tokenizer_class: Any = Qwen2Tokenizer
    words = tokenizer_class(
        vocab={letter: at for at, letter in enumerate(sorted(ByteLevel.alphabet()))},
        merges=[],
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=131072,
    )
    words.chat_template = TEMPLATE
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
    )
    return Qwen3Model(config), words


def pipeline(kind: str) -> ZImagePipeline:
    encoder, words = qwen3(16)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 8],
        axes_lens=[1536, 512, 512],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.normal_(token)  # zeros at first, but not in a trained model
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(
            **CODER,
            latent_channels=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0 if kind == "z-image-turbo" else 6.0),
    }
    return ZImagePipeline(**parts)


def reconstruction(vae: Any, pixels: Tensor) -> Tensor:
    """What the VAE makes of pixels (B, 3, H, W) in [-1, 1] by itself."""
    return vae.decode(vae.encode(pixels).latent_dist.mean).sample
