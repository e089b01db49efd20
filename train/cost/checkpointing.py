"""`--gradient-checkpointing auto`: on only if the estimate of a run does not fit on its GPU without it."""

from dataclasses import replace

import torch

from ...models.cost.components import with_text_defaults
from ...models.cost.speed import DeviceSpeed
from ...models.families import Family
from .cost_model import CostModel, CostSettings, DatasetSize

USABLE = 0.95
"""Fraction of a device's memory that a run may take, because an estimate can be a few percent too low."""


def choose_checkpointing(family: Family, settings: CostSettings, device: torch.device) -> bool:
    """Whether a run on this device needs gradient checkpointing; False on a CPU. Counts on configs alone, in seconds."""
    n_bytes = device_bytes(device)
    if n_bytes is None:
        return False
    data = DatasetSize(n_pairs=1, n_images=2, n_prompts=1)  # memory does not depend on them
    costs = CostModel(with_text_defaults(family), data, DeviceSpeed(str(device), {}, 1.0))
    return needs_checkpointing(costs, settings, n_bytes)


def needs_checkpointing(costs: CostModel, settings: CostSettings, n_bytes: int) -> bool:
    """Whether training takes more than USABLE of so much memory without it. Caching is the same with it and without."""
    memory = costs.memory(replace(settings, gradient_checkpointing=False))
    return max(sum(parts.values()) for phase, parts in memory.items() if phase != "caching") > USABLE * n_bytes


def device_bytes(device: torch.device) -> int | None:
    """Memory of a GPU; None for other devices, whose memory is not counted."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory
