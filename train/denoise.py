"""The denoising errors of a pair: one timestep and one noise for both images.

B is the number of pairs; latents are (B, C, H/8, W/8).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.families import Family
from ..models.noise import Noise


@dataclass(frozen=True)
class NoisyPair:
    """What both models denoise; chosen images first, rejected ones after them."""

    latents: Tensor  # (2B, C, h, w)
    target: Tensor  # (2B, C, h, w), float32
    timesteps: Tensor  # (2B,)
    conditions: dict[str, Tensor]  # each (2B, ...)


def noisy_pair(
    process: Noise,
    chosen: Tensor,
    rejected: Tensor,
    conditions: dict[str, Tensor],
    noise: Tensor,
    timesteps: Tensor,
    input_noise: Tensor | None = None,
) -> NoisyPair:
    """Add the same noise at the same timestep to both images of each pair.

    Args:
        conditions: of the images, chosen ones first; each (2B, ...).
        noise: (B, C, h, w); the target follows from it.
        timesteps: (B,).
        input_noise: (B, C, h, w), added to the latents in place of `noise` if the input is perturbed.
    """
    latents = torch.cat([chosen, rejected])
    noise, timesteps = noise.repeat(2, 1, 1, 1), timesteps.repeat(2)
    added = noise if input_noise is None else input_noise.repeat(2, 1, 1, 1)
    noisy = process.add(latents, added, timesteps)
    return NoisyPair(noisy, process.target(latents, noise, timesteps), timesteps, conditions)


def chosen_only(pair: NoisyPair) -> NoisyPair:
    """The first half: B images."""
    latents, target, timesteps = (part.chunk(2)[0] for part in (pair.latents, pair.target, pair.timesteps))
    return NoisyPair(latents, target, timesteps, {name: part.chunk(2)[0] for name, part in pair.conditions.items()})


def residuals(family: Family, model: object, pair: NoisyPair) -> Tensor:
    """Prediction minus target of each image, float32 whatever the model runs in; in the latents' shape."""
    return family.predict(model, pair.latents, pair.timesteps, pair.conditions).float() - pair.target


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
