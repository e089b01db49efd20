"""Stable Diffusion XL, its refiner and SDXL-turbo."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .settings import PipelineSettings
from .unet import TURBO_STEPS, UNetFamily, is_distilled

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Stable Diffusion XL"
PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
REFINER_TIMESTEPS = 200  # the refiner was trained on the first 200 only
AESTHETIC_SCORE = 6.0  # the score the refiner's pipeline asks for


def family(settings: PipelineSettings) -> UNetFamily:
    base = UNetFamily(
        name="sdxl",
        settings=settings,
        usual=(30, 5.0),
        recipe="sdxl-lora",
        text_encoders=("text_encoder", "text_encoder_2"),
        prompt_tensors=("prompt_embeds", "pooled_prompt_embeds"),
        full_optimizer="adafactor",  # as the reference code has it
        addition_embed_type="text_time",
        encode=_encode,
        conditions=partial(_conditions, refiner=False),
        predict=_predict,
    )
    if "text_encoder" not in settings.text_encoders:
        return replace(
            base,
            name="sdxl-refiner",
            recipe=None,
            text_encoders=("text_encoder_2",),
            starts_from_image=True,
            n_first_timesteps=REFINER_TIMESTEPS,
            conditions=partial(_conditions, refiner=True),
        )
    if is_distilled(settings):
        return replace(base, name="sdxl-turbo", usual=(TURBO_STEPS, 0.0), recipe=None, distilled=True)
    return base


def _encode(pipeline: Any, prompts: list[str]) -> "dict[str, Tensor]":
    """prompt_embeds, (N, tokens, width), of both encoders side by side; pooled_prompt_embeds, (N, width), of the second."""
    import torch

    embeds, _, pooled, _ = pipeline.encode_prompt(
        prompts, device=pipeline.text_encoder_2.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if pipeline.config.get("force_zeros_for_empty_prompt"):
        # as the pipeline does without a prompt: the base model was trained with zeros, not with an encoded empty text
        filled = torch.tensor([bool(prompt) for prompt in prompts], device=embeds.device)
        embeds, pooled = embeds * filled[:, None, None], pooled * filled[:, None]
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _conditions(
    prompts: "dict[str, Tensor]", crop_coordinates: "Tensor", size: tuple[int, int], *, refiner: bool
) -> "dict[str, Tensor]":
    """With SDXL's micro-conditioning, `time_ids`: the image's true original size and crop."""
    import torch

    # the base model gets the size that is trained on, the refiner an aesthetic score
    last = [AESTHETIC_SCORE] if refiner else size
    rows = [[*coordinates, *last] for coordinates in crop_coordinates.tolist()]
    return prompts | {"time_ids": torch.tensor(rows, dtype=torch.float32)}


def _predict(model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
    added = {"text_embeds": conditions["pooled_prompt_embeds"], "time_ids": conditions["time_ids"]}
    return model(noisy, timesteps, conditions["prompt_embeds"], added_cond_kwargs=added).sample
