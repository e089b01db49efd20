"""Families with the settings of real models and of a tiny one, and settings of a run, for tests of cost estimates."""

from typing import Any

from diffusers import UNet2DConditionModel
from prefloop.models.families.unet import LORA_TARGETS
from prefloop.train.cost.cost_model import CostSettings, DatasetSize, DeviceSpeed
from prefloop.train.cost.published import family, sd15, sd35, sd35_medium

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD15 = sd15()
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
TINY_VAE: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 4,
}
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "vocab_size": 100,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TINY = family(
    "StableDiffusionPipeline",
    SCHEDULER,
    unet=("UNet2DConditionModel", TINY_UNET),
    vae=("AutoencoderKL", TINY_VAE),
    text_encoder=("CLIPTextModel", TINY_TEXT),
)
TINY_XL = family(
    "StableDiffusionXLPipeline",
    SCHEDULER,
    unet=(
        "UNet2DConditionModel",
        TINY_UNET
        | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
        },
    ),
    vae=("AutoencoderKL", TINY_VAE),
    text_encoder=("CLIPTextModel", TINY_TEXT),
    text_encoder_2=("CLIPTextModelWithProjection", TINY_TEXT | {"projection_dim": 24}),
)

SD35_MEDIUM = sd35_medium()
SD35_LARGE = sd35(layers=38, heads=38, dual=0, positions=192)
DATA = DatasetSize(n_pairs=100, n_images=150, n_prompts=40)
SETTINGS = CostSettings(
    resolution=128,
    train_batch_size=2,
    gradient_accumulation_steps=4,
    max_train_steps=50,
    n_processes=1,
    lora_rank=0,
    lora_targets=LORA_TARGETS,
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
