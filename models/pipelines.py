"""Load any text-to-image pipeline of diffusers, from a folder or the hub, with or without a LoRA."""

import torch
from diffusers import DiffusionPipeline

from .loading import load_pipeline as composed_pipeline
from .model import Model
from .text_to_image import class_of, left_off


def dtype_of(name: str, device: str) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    return getattr(torch, name)


def load_pipeline(model: Model, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline on the device, quiet, with all that the model is put together from.

    Raises:
        PrefloopError: where it cannot be loaded; the message says how to fetch it.
    """
    pipeline = composed_pipeline(model, dtype, **left_off(class_of(model)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
