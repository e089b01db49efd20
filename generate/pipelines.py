"""Load any text-to-image pipeline of diffusers, from a folder or the hub, with or without a LoRA."""

from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from ..store.errors import PrefloopError, UsageError
from ..store.models import LORA_FILE, Model
from ..store.runs import quiet_libraries


def dtype_of(name: str, device: str) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    return getattr(torch, name)


def load_pipeline(model: Model, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline on the device, quiet, with the LoRA laid on where the model is one.

    Raises:
        PrefloopError: where it cannot be loaded; the message says how to fetch it.
    """
    base = model.root
    quiet_libraries()
    parts = {}
    if model.base is not None and not (Path(model.source) / LORA_FILE).exists():
        parts["unet"] = UNet2DConditionModel.from_pretrained(
            model.source, subfolder="unet", dtype=dtype, use_safetensors=True
        )
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            base.source, dtype=dtype, use_safetensors=True, **parts, **base.loading()
        )
    except (OSError, ValueError) as error:
        cure = "" if "/" not in base.name else f"; `hf download {base.source}` fetches it where there is network"
        raise PrefloopError(f"cannot load the model {base.name}: {_first_line(error)}{cure}") from error
    if model.base is not None and not parts:
        pipeline.load_lora_weights(model.source, weight_name=LORA_FILE)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def set_scheduler(pipeline: DiffusionPipeline, name: str | None) -> None:
    """Replace the sampler by another scheduler class of diffusers, on the model's own noise schedule."""
    if name is None:
        return
    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_config"):
        raise UsageError(f"diffusers has no scheduler {name!r}")
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
