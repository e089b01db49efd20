"""A tiny pipeline of SANA, as tiny.py has them for U-Nets."""

import inspect
import json
from typing import Any

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from tokenizers import Tokenizer, models, trainers
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def packed(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the pipeline's `latents` argument takes them."""
    return latents


def unpacked(latents: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG001
    """What the pipeline returns for output_type "latent", as (B, C, h, w)."""
    return latents


def instruction() -> str:
    """What the pipeline puts before every prompt."""
    return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def gemma(width: int) -> tuple[Any, Any]:
    """A Gemma-2 with grouped queries, and a tokenizer that begins texts as Gemma's does: of letters, but the long instruction is
    few tokens."""
    letters = sorted({*map(chr, range(ord("!"), ord("~") + 1)), "▁", "\n"})
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(
        vocab_size=640, min_frequency=1, special_tokens=list(SPECIAL), initial_alphabet=letters, show_progress=False
    )
    words.train_from_iterator([instruction().replace(" ", "▁")], trainer)
    learned = json.loads(words.to_str())["model"]
    tokenizer_class: Any = GemmaTokenizer
    tokenizer = tokenizer_class(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        model_max_length=2048,
        add_bos_token=True,
    )
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Gemma2Model(config), tokenizer


def pipeline(kind: str) -> SanaPipeline:
    """Its VAE has a factor of 8 and both kinds of blocks; SANA 1.5 has the norms of queries and keys, and scales timesteps."""
    encoder, words = gemma(16)
    newer: dict[str, Any] = {"qk_norm": "rms_norm_across_heads", "timestep_scale": 0.001}
    blocks: dict[str, Any] = {
        f"{coder}_{name}": value
        for coder in ("encoder", "decoder")
        for name, value in (
            ("block_types", ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")),
            ("block_out_channels", (8, 8, 16, 16)),
            ("layers_per_block", (1, 1, 1, 1)),
            ("qkv_multiscales", ((), (), (), (5,))),
        )
    }
    parts: dict[str, Any] = {
        "vae": AutoencoderDC(**blocks, latent_channels=4, attention_head_dim=8, scaling_factor=0.41407),
        "transformer": SanaTransformer2DModel(
            **(newer if kind == "sana15" else {}),
            sample_size=4,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "scheduler": DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        ),
    }
    return SanaPipeline(**parts)


def reconstruction(vae: Any, pixels: Tensor) -> Tensor:
    """What the VAE makes of pixels (B, 3, H, W) in [-1, 1] by itself."""
    return vae.decode(vae.encode(pixels).latent).sample
