"""Families with the settings of real models and of a tiny one, and settings of a run, for tests of cost estimates."""

from typing import Any

from diffusers import UNet2DConditionModel
from prefloop.models.cost.components import with_text_defaults
from prefloop.models.families import PIPELINES, Family
from prefloop.models.families.settings import PipelineSettings
from prefloop.models.families.unet import LORA_TARGETS
from prefloop.train.cost.cost_model import CostSettings, DatasetSize, DeviceSpeed

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def family(pipeline_class: str, scheduler: dict[str, Any], **parts: tuple[str, dict[str, Any]]) -> Family:
    """The family of a pipeline.

    Args:
        parts: class and settings of each.
    """
    libraries = {part: "transformers" if part.startswith("text") else "diffusers" for part in parts}
    index = {part: [libraries[part], kind] for part, (kind, _) in parts.items()}
    index |= {"_class_name": pipeline_class, "scheduler": ["diffusers", "any"]}
    configs = {part: config for part, (_, config) in parts.items()} | {"scheduler": scheduler}
    settings = PipelineSettings(pipeline_class, index, {"unet": {}, "transformer": {}} | configs)
    return with_text_defaults(PIPELINES[pipeline_class].family(settings).checked())


SD15 = family(
    "StableDiffusionPipeline",
    SCHEDULER,
    unet=(
        "UNet2DConditionModel",
        {
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
    ),
    vae=(
        "AutoencoderKL",
        {
            "latent_channels": 4,
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
        },
    ),
    text_encoder=(
        "CLIPTextModel",
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


def sd35(layers: int, heads: int, dual: int, positions: int) -> Family:
    """Stable Diffusion 3.5 by the published settings of its parts."""
    width = 64 * heads
    return family(
        "StableDiffusion3Pipeline",
        {"shift": 3.0},
        transformer=(
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": layers,
                "attention_head_dim": 64,
                "num_attention_heads": heads,
                "joint_attention_dim": 4096,
                "caption_projection_dim": width,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": positions,
                "qk_norm": "rms_norm",
                "dual_attention_layers": list(range(dual)),
            },
        ),
        vae=(
            "AutoencoderKL",
            {
                "latent_channels": 16,
                "block_out_channels": [128, 256, 512, 512],
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
                "layers_per_block": 2,
                "scaling_factor": 1.5305,
                "shift_factor": 0.0609,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
            },
        ),
        text_encoder=(
            "CLIPTextModelWithProjection",
            {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "max_position_embeddings": 77,
                "vocab_size": 49408,
                "projection_dim": 768,
            },
        ),
        text_encoder_2=(
            "CLIPTextModelWithProjection",
            {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "max_position_embeddings": 77,
                "vocab_size": 49408,
                "projection_dim": 1280,
            },
        ),
        text_encoder_3=(
            "T5EncoderModel",
            {
                "d_model": 4096,
                "d_kv": 64,
                "d_ff": 10240,
                "num_layers": 24,
                "num_heads": 64,
                "vocab_size": 32128,
                "feed_forward_proj": "gated-gelu",
            },
        ),
    )


SD35_MEDIUM = sd35(layers=24, heads=24, dual=13, positions=384)
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
