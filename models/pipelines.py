"""Load any text-to-image pipeline of diffusers, from a folder or the hub, with or without a LoRA."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

from .families import known_family
from .loading import load_pipeline as composed_pipeline
from .model import Model
from .text_to_image import pipeline_class, without_filters


def dtype_of(name: str, device: str, model: Model) -> torch.dtype:
    """
    Args:
        name: of a data type of torch; auto is the family's on a GPU and float32 elsewhere.
    """
    if name == "auto":
        family = known_family(model)
        half = family.dtype if family is not None else "float16" if model.settings.component == "unet" else "bfloat16"
        name = half if device.startswith("cuda") else "float32"
    return getattr(torch, name)


def load_pipeline(model: Model, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline on the device, without progress bars, with everything the model consists of.

    Raises:
        PrefloopError: if it cannot be loaded; the message says how to fetch it.
    """
    pipeline = composed_pipeline(model, dtype, **without_filters(pipeline_class(model.settings.pipeline_class)))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if device.startswith("cuda"):
        channels_last(pipeline)
    return pipeline


def channels_last(pipeline: DiffusionPipeline) -> None:
    """Lay out the convolutions of a U-Net and its VAE as the tensor cores of a GPU read them. A CPU gains nothing by it."""
    for name in ("unet", "vae"):
        part: Any = getattr(pipeline, name, None) if hasattr(pipeline, "unet") else None
        if part is not None and all(weight.dim() <= 4 for weight in part.parameters()):
            part.to(memory_format=torch.channels_last)
