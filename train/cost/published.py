"""The models that recipes are for, by the published settings of their parts, so that their cost can be counted without a network."""

from typing import Any

from ...models.cost.components import with_text_defaults
from ...models.families import PIPELINES, Family
from ...models.families.settings import PipelineSettings

Part = tuple[str, dict[str, Any]]
"""Class and settings."""
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


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


def autoencoder(channels: int, **more: Any) -> Part:
    """The VAE of Stable Diffusion, with that many latent channels."""
    settings: dict[str, Any] = {"latent_channels": channels, "block_out_channels": [128, 256, 512, 512]}
    settings |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return "AutoencoderKL", settings | {"layers_per_block": 2} | more


def clip(kind: str, width: int, layers: int, heads: int) -> Part:
    settings = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    settings |= {"num_attention_heads": heads, "max_position_embeddings": 77, "vocab_size": 49408}
    return kind, settings | ({"projection_dim": width} if kind.endswith("Projection") else {})


def clip_l(kind: str = "CLIPTextModel") -> Part:
    return clip(kind, 768, 12, 12)


CLIP_G = clip("CLIPTextModelWithProjection", 1280, 32, 20)
T5_XXL: Part = (
    "T5EncoderModel",
    {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
    | {"feed_forward_proj": "gated-gelu"},
)
_QWEN3_4B: dict[str, Any] = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "head_dim": 128}
_QWEN3_4B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True}
_QWEN3_4B |= {"max_position_embeddings": 40960}


def sd15() -> Family:
    unet = {"sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768}
    unet |= {"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "attention_head_dim": 8}
    unet |= {"up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "block_out_channels": [320, 640, 1280, 1280]}
    return family(
        "StableDiffusionPipeline",
        BETAS,
        unet=("UNet2DConditionModel", unet),
        vae=autoencoder(4),
        text_encoder=clip_l(),
    )


def sdxl(*, turbo: bool = False) -> Family:
    unet = {"sample_size": 64 if turbo else 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2}
    unet |= {"down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2, "block_out_channels": [320, 640, 1280]}
    unet |= {"up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"], "transformer_layers_per_block": [1, 2, 10]}
    unet |= {"attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True}
    unet |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    unet |= {"projection_class_embeddings_input_dim": 2816}
    scheduler = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"} if turbo else {}
    return family(
        "StableDiffusionXLPipeline",
        BETAS | scheduler,
        unet=("UNet2DConditionModel", unet),
        vae=autoencoder(4, scaling_factor=0.13025),
        text_encoder=clip_l(),
        text_encoder_2=CLIP_G,
    )


def sdxl_turbo() -> Family:
    return sdxl(turbo=True)


def sd35(layers: int, heads: int, dual: int, positions: int) -> Family:
    width = 64 * heads
    transformer = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": layers}
    transformer |= {"attention_head_dim": 64, "num_attention_heads": heads, "joint_attention_dim": 4096}
    transformer |= {"caption_projection_dim": width, "pooled_projection_dim": 2048, "pos_embed_max_size": positions}
    transformer |= {"qk_norm": "rms_norm", "dual_attention_layers": list(range(dual))}
    return family(
        "StableDiffusion3Pipeline",
        {"shift": 3.0},
        transformer=("SD3Transformer2DModel", transformer),
        vae=autoencoder(
            16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_l("CLIPTextModelWithProjection"),
        text_encoder_2=CLIP_G,
        text_encoder_3=T5_XXL,
    )


def sd35_medium() -> Family:
    return sd35(layers=24, heads=24, dual=13, positions=384)


def flux1_dev() -> Family:
    transformer = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "joint_attention_dim": 4096}
    transformer |= {"pooled_projection_dim": 768, "guidance_embeds": True}
    return family(
        "FluxPipeline",
        {"use_dynamic_shifting": True, "shift": 3.0},
        transformer=("FluxTransformer2DModel", transformer),
        vae=_flux_vae(),
        text_encoder=clip_l(),
        text_encoder_2=T5_XXL,
    )


def _flux_vae() -> Part:
    return autoencoder(
        16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=1024,
    )


def flux2_klein_4b() -> Family:
    transformer = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    return family(
        "Flux2KleinPipeline",
        {"use_dynamic_shifting": True, "shift": 3.0},
        transformer=("Flux2Transformer2DModel", transformer | {"guidance_embeds": False}),
        vae=("AutoencoderKLFlux2", autoencoder(32)[1]),
        text_encoder=("Qwen3ForCausalLM", _QWEN3_4B),
    )


def z_image() -> Family:
    transformer = {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "cap_feat_dim": 2560}
    transformer |= {"axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "in_channels": 16}
    return family(
        "ZImagePipeline",
        {"shift": 6.0},
        transformer=("ZImageTransformer2DModel", transformer),
        vae=_flux_vae(),
        text_encoder=("Qwen3Model", _QWEN3_4B),
    )


def qwen_image() -> Family:
    text: dict[str, Any] = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
    transformer = {"num_layers": 60, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return family(
        "QwenImagePipeline",
        {"use_dynamic_shifting": True},
        transformer=("QwenImageTransformer2DModel", transformer),
        vae=("AutoencoderKLQwenImage", {"base_dim": 96, "z_dim": 16}),
        text_encoder=("Qwen2_5_VLForConditionalGeneration", {"text_config": text, "vision_config": vision}),
    )


def sana() -> Family:
    channels, types = [128, 256, 512, 512, 1024, 1024], ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
    vae: dict[str, Any] = {"latent_channels": 32, "scaling_factor": 0.41407}
    for side, layers in (("encoder", [2, 2, 2, 3, 3, 3]), ("decoder", [3, 3, 3, 3, 3, 3])):
        vae |= {f"{side}_block_out_channels": channels, f"{side}_block_types": types}
        vae |= {f"{side}_layers_per_block": layers, f"{side}_qkv_multiscales": [[], [], [], [5], [5], [5]]}
    text: dict[str, Any] = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "head_dim": 256}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256000}
    return family(
        "SanaPipeline",
        {"flow_shift": 3.0},
        transformer=("SanaTransformer2DModel", {"interpolation_scale": None}),
        vae=("AutoencoderDC", vae | {"downsample_block_type": "Conv", "upsample_block_type": "interpolate"}),
        text_encoder=("Gemma2Model", text),
    )


def pixart_sigma() -> Family:
    transformer = {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False}
    return family(
        "PixArtSigmaPipeline",
        {"beta_schedule": "linear"},
        transformer=("PixArtTransformer2DModel", transformer),
        vae=autoencoder(4, scaling_factor=0.13025),
        text_encoder=T5_XXL,
    )


MODELS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": sd15,
    "stabilityai/stable-diffusion-xl-base-1.0": sdxl,
    "stabilityai/sdxl-turbo": sdxl_turbo,
    "stabilityai/stable-diffusion-3.5-medium": sd35_medium,
    "black-forest-labs/FLUX.1-dev": flux1_dev,
    "black-forest-labs/FLUX.2-klein-base-4B": flux2_klein_4b,
    "Tongyi-MAI/Z-Image": z_image,
    "Qwen/Qwen-Image": qwen_image,
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": sana,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": pixart_sigma,
}
"""By what recipes call them."""
