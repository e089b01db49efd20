"""The frozen encoders that make the latents and embeddings a model is trained on."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..models import loading
from ..models.families import Family
from ..models.model import Model
from ..models.parts import with_parts


def load_vae(model: Model, replacement: str | None, device: torch.device) -> Any:
    """The model's VAE, or another one by the folder or hub id of a pipeline or VAE; frozen, float32."""
    return loading.load_vae(with_parts(model, vae=replacement)).eval().requires_grad_(False).to(device)


def load_text_encoders(
    model: Model, family: Family, device: torch.device
) -> Callable[[list[str]], Mapping[str, Tensor | list[Tensor]]]:
    """A function from N prompts to their embeddings by name, as the family's `encode` returns them; frozen.

    float32, except that encoders made for bfloat16, which have billions of weights, stay in it on a GPU.
    """
    pipeline = loading.load_root(model, **{family.component: None, "vae": None})
    dtype = torch.bfloat16 if family.dtype == "bfloat16" and device.type == "cuda" else torch.float32
    for part in family.text_encoders:
        getattr(pipeline, part).to(dtype).eval().requires_grad_(False).to(device)
    return partial(family.encode, pipeline)
