"""Configs of Stable Diffusion 1.5 and of a tiny pipeline, and settings of a run, for tests of cost estimates."""

from typing import Any

from diffusers import UNet2DConditionModel
from prefloop.train.cost.cost_model import CostSettings, DatasetSize, DeviceSpeed, PipelineConfigs

# Stable Diffusion 1.5
SD15 = PipelineConfigs(
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae={
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    text_encoders=(
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "vocab_size": 49408,
        },
    ),
)
TINY_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
TINY = PipelineConfigs(
    unet=TINY_UNET,
    vae={
        "latent_channels": 4,
        "block_out_channels": [8, 8, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 4,
    },
    text_encoders=(
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "vocab_size": 100,
        },
    ),
)
DATA = DatasetSize(n_pairs=100, n_images=150, n_prompts=40)
SETTINGS = CostSettings(
    resolution=128,
    train_batch_size=2,
    gradient_accumulation_steps=4,
    max_train_steps=50,
    n_processes=1,
    lora_rank=0,
    mixed_precision="no",
    gradient_checkpointing=False,
    optimizer="adamw",
    images_per_pair=2,
    has_reference=True,
    reference_draws=False,
    ema=False,
    flip=False,
    encode_batch=1,
)
SPEED = DeviceSpeed("cuda", {"no": 1e12, "fp16": 4e12, "bf16": 4e12}, 0.5)
N_WEIGHTS = sum(weight.numel() for weight in UNet2DConditionModel(**TINY_UNET).parameters())
