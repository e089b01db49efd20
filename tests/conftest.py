"""What several tests need: one thread, no network, an empty store, and a tiny pipeline made from config."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # read when torch is imported, by this process and those it starts
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from prefloop.store import PairStore  # noqa: E402


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    return PairStore.create(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline of random weights, as a folder; it draws 32 x 32 pictures from 4 x 4 latents."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from prefloop.shapes.words import tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    words: Any = tokenizer()
    # as dicts, since the annotations of diffusers are narrower than what it takes
    coder: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    denoiser: dict[str, Any] = {
        "sample_size": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
    }
    reader = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts: dict[str, Any] = {
            "vae": AutoencoderKL(**coder),
            "unet": UNet2DConditionModel(**denoiser),
            "text_encoder": CLIPTextModel(reader),
            "tokenizer": words,
            "scheduler": DDIMScheduler(clip_sample=False),
            "safety_checker": None,
            "feature_extractor": None,
        }
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    return folder
