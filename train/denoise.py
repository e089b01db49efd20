"""The denoising errors of a pair: one timestep and one noise for both images.

B is the number of pairs; latents are (B, C, H/8, W/8).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoisyPair:
    """What both models are asked to denoise; chosen images first, rejected after them."""

    latents: Tensor  # (2B, C, h, w)
    target: Tensor  # (2B, C, h, w), float32
    timesteps: Tensor  # (2B,)
    hidden: Tensor  # (2B, tokens, width)


def noisy_pair(
    scheduler: Any,
    chosen: Tensor,
    rejected: Tensor,
    hidden: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    input_noise: Tensor | None = None,
) -> NoisyPair:
    """Add the same noise at the same timestep to both images of each pair.

    Args:
        scheduler: a DDPMScheduler; its prediction_type decides the target.
        hidden: the text encoder's output for the prompts, (B, tokens, width).
        noise: (B, C, h, w); its target for both images.
        timesteps: (B,).
        input_noise: what is mixed into the input instead of `noise`, where the input is perturbed; tied like it.
    """
    latents = torch.cat([chosen, rejected])
    noise, timesteps = noise.repeat(2, 1, 1, 1), timesteps.repeat(2)
    mixed = noise if input_noise is None else input_noise.repeat(2, 1, 1, 1)
    noisy = scheduler.add_noise(latents, mixed, timesteps)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    elif kind == "sample":
        target = latents
    else:
        raise ValueError(f"no target is known for prediction_type {kind!r}")
    return NoisyPair(noisy, target.float(), timesteps, hidden.repeat(2, 1, 1))


def pair_errors(unet: Any, pair: NoisyPair) -> tuple[Tensor, Tensor]:
    """Mean squared error of each image's prediction: chosen (B,) and rejected (B,), float32 whatever the model runs in."""
    predicted = unet(pair.latents, pair.timesteps, pair.hidden).sample
    errors = (predicted.float() - pair.target).square().mean(dim=(1, 2, 3))
    chosen, rejected = errors.chunk(2)
    return chosen, rejected
