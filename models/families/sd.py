"""Stable Diffusion 1 and 2, and SD-turbo."""

from typing import TYPE_CHECKING, Any

from .settings import PipelineSettings
from .unet import TURBO_STEPS, UNetFamily, is_distilled

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Stable Diffusion 1 and 2"
PIPELINES = ("StableDiffusionPipeline",)


def family(settings: PipelineSettings) -> UNetFamily:
    turbo = is_distilled(settings)
    return UNetFamily(
        name="sd-turbo" if turbo else "sd",
        settings=settings,
        usual=(TURBO_STEPS, 0.0) if turbo else (25, 7.5),
        recipe=None if turbo else "sd15-lora",
        distilled=turbo,
        text_encoders=("text_encoder",),
        prompt_tensors=("prompt_embeds",),
        full_optimizer="adamw",
        addition_embed_type=None,
        encode=_encode,
        conditions=_conditions,
        predict=_predict,
    )


def _encode(pipeline: Any, prompts: list[str]) -> "dict[str, Tensor]":
    """prompt_embeds, (N, tokens, width)."""
    embeds, _ = pipeline.encode_prompt(
        prompts, device=pipeline.text_encoder.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"prompt_embeds": embeds}


def _conditions(
    prompts: "dict[str, Tensor]", _crop_coordinates: "Tensor", _size: tuple[int, int]
) -> "dict[str, Tensor]":
    return prompts


def _predict(model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
    return model(noisy, timesteps, conditions["prompt_embeds"]).sample
