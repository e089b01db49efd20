"""Load any text-to-image pipeline of diffusers, from a folder or the hub, with or without a LoRA."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from ..store.errors import PrefloopError
from ..store.models import LORA_FILE, Model
from ..store.runs import quiet_libraries
from .text_to_image import class_of, first_line, left_off


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
    parts = left_off(class_of(model))
    try:
        if model.base is not None and not (Path(model.source) / LORA_FILE).exists():
            parts["unet"] = UNet2DConditionModel.from_pretrained(
                model.source, subfolder="unet", dtype=dtype, use_safetensors=True
            )
        pipeline = DiffusionPipeline.from_pretrained(
            base.source, dtype=dtype, use_safetensors=True, **parts, **base.loading()
        )
        if model.base is not None and "unet" not in parts:
            pipeline.load_lora_weights(model.source, weight_name=LORA_FILE, use_safetensors=True)
    except Exception as error:  # the libraries raise what they like where files are broken
        cure = "" if "/" not in base.name else f"; `hf download {base.source}` fetches it where there is network"
        raise PrefloopError(f"cannot load the model {model.name}: {first_line(error)}{cure}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
