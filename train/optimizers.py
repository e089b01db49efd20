"""The optimizer and its learning rate."""

from typing import Any

import torch
from torch import nn

from ..models.families import Family
from .config import TrainConfig


def optimizer_name(config: TrainConfig, family: Family) -> str:
    """The optimizer's name; `auto` is AdamW for a LoRA, and the family's own choice if every weight is trained."""
    if config.optimizer != "auto":
        return config.optimizer
    return "adamw" if config.lora_rank else family.full_optimizer


def learning_rate(config: TrainConfig, n_processes: int) -> float:
    """The absolute learning rate; with scale_lr, learning_rate times the pairs per optimizer step."""
    pairs = config.train_batch_size * config.gradient_accumulation_steps * n_processes
    return config.learning_rate * (pairs if config.scale_lr else 1)


def optimizer_for(config: TrainConfig, family: Family, parameters: list[nn.Parameter], rate: float) -> Any:
    name = optimizer_name(config, family)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # clip_threshold is the only clipping: clipping by the norm as well would clip twice
        return Adafactor(
            parameters,
            lr=rate,
            weight_decay=config.adam_weight_decay,
            clip_threshold=1.0,
            scale_parameter=False,
            relative_step=False,
        )
    adamw: Any = torch.optim.AdamW
    more: dict[str, Any] = {"fused": True} if _can_fuse(config, parameters) else {}
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as adamw  # type: ignore[import-not-found]  # an extra

        more = {}
    return adamw(
        parameters,
        lr=rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        **more,
    )


def _can_fuse(config: TrainConfig, parameters: list[nn.Parameter]) -> bool:
    """Whether one kernel can update all weights, without a temporary copy of them. Not where gradients are scaled (fp16): a fused
    step hides from accelerate that it was left out."""
    return config.mixed_precision != "fp16" and all(parameter.device.type == "cuda" for parameter in parameters)
