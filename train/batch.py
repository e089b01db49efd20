"""A batch of pairs with everything that is sampled for them, as the model takes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .pairs import Pair
from .transfer import to_device


@dataclass(frozen=True)
class Batch:
    """B pairs of one crop size with everything that is sampled for them, float32."""

    pairs: list[Pair]
    chosen: Tensor  # (B, C, h, w), scaled latents
    rejected: Tensor  # (B, C, h, w)
    conditions: dict[str, Tensor]  # each (2B, ...), chosen images first: what the family's predict takes
    timesteps: Tensor  # (B,), integers of a diffusion model, 1000 sigma of a flow-matching one
    noise: Tensor  # (B, C, h, w), the same for both images
    input_noise: Tensor | None = None  # (B, C, h, w), added to the latents instead, if the input is perturbed
    ref_chosen: Tensor | None = None  # (B,), the reference's errors, if they are cached
    ref_rejected: Tensor | None = None  # (B,)

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        return self._with_each(lambda tensor: to_device(tensor, device))

    def pinned(self) -> "Batch":
        """The batch in memory that a GPU copies from while it computes, and other work goes on."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **changed, conditions={name: change(value) for name, value in self.conditions.items()})


def padded(rows: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Stack the rows of each name, float32; rows of different lengths are padded with zeros and get a mask, NAME_mask."""
    stacked: dict[str, Tensor] = {}
    for name, tensors in rows.items():
        if len({tensor.shape for tensor in tensors}) == 1:
            stacked[name] = torch.stack(list(tensors)).float()
            continue
        lengths = torch.tensor([len(tensor) for tensor in tensors])
        stacked[name] = torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True).float()
        stacked[f"{name}_mask"] = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return stacked
