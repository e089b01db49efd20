"""The denoising errors of a pair: one timestep and one noise for both images.

B is the number of pairs; latents are (B, C, H/8, W/8).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.training_utils import compute_snr
from torch import Tensor


@dataclass(frozen=True)
class NoisyPair:
    """What both models are asked to denoise; chosen images first, rejected after them."""

    latents: Tensor  # (2B, C, h, w)
    target: Tensor  # (2B, C, h, w), float32
    timesteps: Tensor  # (2B,)
    hidden: Tensor  # (2B, tokens, width)
    added: Mapping[str, Tensor] = field(default_factory=dict)  # text_embeds (2B, width) and time_ids (2B, n) for SDXL


def noisy_pair(
    scheduler: Any,
    chosen: Tensor,
    rejected: Tensor,
    hidden: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    input_noise: Tensor | None = None,
    pooled: Tensor | None = None,
    time_ids: Tensor | None = None,
) -> NoisyPair:
    """Add the same noise at the same timestep to both images of each pair.

    Args:
        scheduler: a DDPMScheduler; its prediction_type decides the target.
        hidden: the text encoder's output for the prompts, (B, tokens, width).
        noise: (B, C, h, w); its target for both images.
        timesteps: (B,).
        input_noise: what is mixed into the input instead of `noise`, where the input is perturbed; tied like it.
        pooled: (B, width) for SDXL.
        time_ids: (2B, n) for SDXL: each image has its own.
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
    added = {}
    if pooled is not None and time_ids is not None:
        added = {"text_embeds": pooled.repeat(2, 1), "time_ids": time_ids}
    return NoisyPair(noisy, target.float(), timesteps, hidden.repeat(2, 1, 1), added)


def chosen_alone(pair: NoisyPair) -> NoisyPair:
    """The first half: B images."""
    parts = (pair.latents, pair.target, pair.timesteps, pair.hidden)
    latents, target, timesteps, hidden = (part.chunk(2)[0] for part in parts)
    return NoisyPair(latents, target, timesteps, hidden, {name: part.chunk(2)[0] for name, part in pair.added.items()})


def residuals(unet: Any, pair: NoisyPair) -> Tensor:
    """Prediction minus target of each image, float32 whatever the model runs in; of latents' shape."""
    conditions = {"added_cond_kwargs": dict(pair.added)} if pair.added else {}
    predicted = unet(pair.latents, pair.timesteps, pair.hidden, **conditions).sample
    return predicted.float() - pair.target


def pair_errors(residual: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean squared error of each image's prediction: chosen (B,) and rejected (B,), float32.

    Args:
        residual: prediction minus target, (2B, C, h, w).
        weights: of each pair's timestep, (B,); None is 1.
    """
    chosen, rejected = residual.square().mean(dim=(1, 2, 3)).chunk(2)
    if weights is None:
        return chosen, rejected
    return weights * chosen, weights * rejected


def min_snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights of timesteps by min-SNR, arXiv 2303.09556, for what the model predicts; (B,)."""
    snr = compute_snr(scheduler, timesteps)
    kept = snr.clamp(max=gamma)
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return kept / (snr + 1)
    if kind == "sample":
        return kept
    # where the signal ratio is zero, an error of the noise says nothing of the image: weight 1, its limit
    return torch.where(snr > 0, kept / snr.clamp(min=torch.finfo(torch.float32).tiny), torch.ones_like(snr))
