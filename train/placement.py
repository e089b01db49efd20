"""How weights lie in memory while a model trains: channels last on a GPU, and a frozen reference in half precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..models.families import Family

_CAST_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose weights autocast rounds to half precision whenever they run. It computes norms in float32."""


def prefers_channels_last(family: Family, device: torch.device) -> bool:
    """Whether convolutions want their channels last: those of a U-Net on an NVIDIA GPU, which otherwise reorders each of them."""
    return family.component == "unet" and device.type == "cuda"


def to_channels_last(component: Any) -> None:
    """Reorder the weights of convolutions in memory; their values, names and shapes stay, as do the bytes of a checkpoint."""
    component.to(memory_format=torch.channels_last)


def follow_layout(optimizer: Any) -> None:
    """Give moments the order of their weight in memory, which a checkpoint may have had otherwise: a fused step needs it."""
    for weight, state in optimizer.state.items():
        for name, moment in state.items():
            if isinstance(moment, torch.Tensor) and moment.shape == weight.shape and moment.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=moment.dtype, device=moment.device).copy_(moment)


def round_as_autocast(component: Any, dtype: torch.dtype) -> None:
    """Keep a frozen model's weights as autocast rounds them, in half of the memory: its results stay the same to the bit.

    Weights of norms and embeddings stay in float32, as autocast leaves them.
    """
    for module in component.modules():
        if isinstance(module, _CAST_BY_AUTOCAST):
            module.to(dtype)


def rounded_numel(component: Any) -> int:
    """How many weights `round_as_autocast` rounds."""
    modules = (module for module in component.modules() if isinstance(module, _CAST_BY_AUTOCAST))
    return sum(weight.numel() for module in modules for weight in module.parameters(recurse=False))


@contextmanager
def in_float32(component: Any) -> Iterator[None]:
    """Rounded weights as float32 for the duration of the block, for a caller without autocast."""
    rounded = [
        (module, module.weight.dtype)
        for module in component.modules()
        if isinstance(module, _CAST_BY_AUTOCAST) and module.weight.dtype in (torch.float16, torch.bfloat16)
    ]
    for module, _ in rounded:
        module.float()
    try:
        yield
    finally:
        for module, dtype in rounded:
            module.to(dtype)
