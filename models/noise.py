"""How images are noised in training, what a model has to predict, and what an error at a timestep weighs."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import compute_snr
from torch import Generator, Tensor


@dataclass(frozen=True)
class Diffusion:
    """The noising of DDPM, arXiv 2006.11239: noisy = sqrt(a) latents + sqrt(1 - a) noise, a = alphas_cumprod[timestep].

    B is the number of images; latents and noise are (B, C, h, w), timesteps (B,).
    """

    scheduler: Any
    """A DDPMScheduler; its prediction_type decides the target."""
    timesteps: tuple[int, ...]
    """Those that are trained on."""

    @property
    def prediction_type(self) -> str:
        """epsilon, v_prediction or sample."""
        return self.scheduler.config.prediction_type

    def timestep(self, generator: Generator) -> int:
        """One of the timesteps, each as likely as any other."""
        return self.timesteps[int(torch.randint(len(self.timesteps), (), generator=generator))]

    def add(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model has to predict, float32."""
        if self.prediction_type == "epsilon":
            return noise.float()
        if self.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps).float()
        if self.prediction_type == "sample":
            return latents.float()
        raise ValueError(f"no target is known for prediction_type {self.prediction_type!r}")

    def weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Weights of errors by min-SNR, arXiv 2303.09556, for what the model predicts; (B,)."""
        snr = compute_snr(self.scheduler, timesteps)
        clamped = snr.clamp(max=gamma)
        if self.prediction_type == "v_prediction":
            return clamped / (snr + 1)
        if self.prediction_type == "sample":
            return clamped
        # if the signal ratio is zero, an error of the noise says nothing about the image: weight 1, its limit
        return torch.where(snr > 0, clamped / snr.clamp(min=torch.finfo(torch.float32).tiny), torch.ones_like(snr))
