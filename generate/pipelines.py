"""Load any text-to-image pipeline of diffusers, from a folder or the hub, with or without a LoRA."""

import diffusers
import torch
from diffusers import DiffusionPipeline

from ..store.errors import UsageError
from ..store.loading import load_pipeline as composed_pipeline
from ..store.model import Model


def dtype_of(name: str, device: str) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    return getattr(torch, name)


def load_pipeline(model: Model, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline on the device, quiet, with all that the model is put together from.

    Raises:
        PrefloopError: where it cannot be loaded; the message says how to fetch it.
    """
    pipeline = composed_pipeline(model, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def set_scheduler(pipeline: DiffusionPipeline, name: str | None) -> None:
    """Replace the sampler by another scheduler class of diffusers, on the model's own noise schedule."""
    if name is None:
        return
    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_config"):
        raise UsageError(f"diffusers has no scheduler {name!r}")
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
