"""How images are noised in training, what a model has to predict, and what an error at a timestep weighs."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Generator, Tensor

from ..core.errors import UsageError
from .density import Density

FLOW_TIMESTEPS = 1000  # sigma 1 in the timesteps of every flow-matching pipeline of diffusers


class Noise(Protocol):
    """B is the number of images; latents and noise are (B, C, h, w), timesteps (B,)."""

    @property
    def prediction_type(self) -> str:
        """What the model predicts."""
        ...

    def timestep(self, generator: Generator, quantile: float) -> float:
        """A timestep to train on.

        Args:
            quantile: in 0..1, evenly spread over the pairs that follow one another; not every kind of noise uses it.
        """
        ...

    def bins(self, n: int) -> list[tuple[float, float]]:
        """At most n bins of timesteps that are trained on equally often: the first and the last timestep of each."""
        ...

    def timestep_in(self, bin: int, n: int, seed: int) -> float:
        """A timestep of bin number `bin` of `bins(n)` that follows from the seed."""
        ...

    def within(self, first: float, last: float) -> "Noise":
        """The same, with only the timesteps from first to last.

        Raises:
            UsageError: if none of those that are trained on is among them.
        """
        ...

    def add(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model has to predict, float32."""
        ...

    def weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Weights of errors by min-SNR, (B,)."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """The noising of DDPM, arXiv 2006.11239: noisy = sqrt(a) latents + sqrt(1 - a) noise, a = alphas_cumprod[timestep].

    B is the number of images; latents and noise are (B, C, h, w), timesteps (B,).
    """

    scheduler: Any
    """A DDPMScheduler; its prediction_type decides the target."""
    timesteps: tuple[int, ...]
    """Those that are trained on."""

    @classmethod
    def of(
        cls, settings: dict[str, Any], timesteps: tuple[int, ...] | None = None, zero_snr: bool = False
    ) -> "Diffusion":
        """The noise schedule that a model was trained on.

        Args:
            settings: of its scheduler, of any class.
            timesteps: None is all of them.
            zero_snr: whether the last timestep has no signal, arXiv 2305.08891; also if the settings say so.
        """
        zero_snr = zero_snr or bool(settings.get("rescale_betas_zero_snr"))
        scheduler = DDPMScheduler.from_config(settings, rescale_betas_zero_snr=zero_snr)
        return cls(scheduler, tuple(range(settings["num_train_timesteps"])) if timesteps is None else timesteps)

    @property
    def prediction_type(self) -> str:
        """epsilon, v_prediction or sample."""
        return self.scheduler.config.prediction_type

    def timestep(self, generator: Generator, quantile: float) -> int:  # noqa: ARG002
        """One of the timesteps, each as likely as any other, whatever the quantile: as in the Diffusion-DPO code."""
        return self.timesteps[int(torch.randint(len(self.timesteps), (), generator=generator))]

    def bins(self, n: int) -> list[tuple[float, float]]:
        return [(timesteps[0], timesteps[-1]) for timesteps in self._bins(n)]

    def timestep_in(self, bin: int, n: int, seed: int) -> int:
        timesteps = self._bins(n)[bin]
        return timesteps[seed % len(timesteps)]

    def within(self, first: float, last: float) -> "Diffusion":
        kept = tuple(timestep for timestep in self.timesteps if first <= timestep <= last)
        if not kept:
            raise UsageError(
                f"none of the model's timesteps, {min(self.timesteps)} to {max(self.timesteps)}, is from {first:g} to {last:g}; "
                "widen the range of min-timestep and max-timestep"
            )
        return replace(self, timesteps=kept)

    def _bins(self, n: int) -> list[tuple[int, ...]]:
        allowed = self.timesteps
        n = min(n, len(allowed))
        return [allowed[len(allowed) * k // n : len(allowed) * (k + 1) // n] for k in range(n)]

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


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths between image and noise, arXiv 2209.03003: noisy = (1 - sigma) latents + sigma noise, and the model
    predicts their direction, noise - latents. Timesteps are 1000 sigma, as in diffusers' pipelines.
    """

    density: Density = "logit-normal"
    """What sigma is drawn from: the sigmoid of a normal number as in SD3, arXiv 2403.03206, or uniform."""
    shift: float = 1.0
    """Moves sigma toward noise: shift sigma / (1 + (shift - 1) sigma); 3 puts the median at 0.75."""

    quantiles: tuple[float, float] = (0.0, 1.0)
    """The part of the density that is trained on."""

    prediction_type: str = "flow"

    def sigma(self, quantile: float) -> float:
        """The sigma below which that fraction of training lies."""
        low, high = self.quantiles
        quantile = min(max(low + (high - low) * quantile, 1e-6), 1 - 1e-6)
        sigma = quantile
        if self.density == "logit-normal":
            sigma = float(torch.tensor(NormalDist().inv_cdf(quantile), dtype=torch.float64).sigmoid())
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def timestep(self, generator: Generator, quantile: float) -> float:  # noqa: ARG002
        return FLOW_TIMESTEPS * self.sigma(quantile)

    def bins(self, n: int) -> list[tuple[float, float]]:
        edges = [FLOW_TIMESTEPS * self.sigma(k / n) for k in range(n + 1)]
        low, high = self.quantiles
        edges[0], edges[-1] = edges[0] if low else 0.0, edges[-1] if high < 1 else float(FLOW_TIMESTEPS)
        return list(pairwise(edges))

    def within(self, first: float, last: float) -> "RectifiedFlow":
        low, high = (self._quantile(timestep / FLOW_TIMESTEPS) for timestep in (first, last))
        return replace(self, quantiles=(low, high))

    def _quantile(self, sigma: float) -> float:
        """The fraction of the whole density below a sigma; the inverse of `sigma`."""
        if not 0 < sigma < 1:
            return float(sigma >= 1)
        sigma /= self.shift - (self.shift - 1) * sigma
        return sigma if self.density == "uniform" else NormalDist().cdf(math.log(sigma / (1 - sigma)))

    def timestep_in(self, bin: int, n: int, seed: int) -> float:
        return FLOW_TIMESTEPS * self.sigma((bin + (seed % 10_000 + 0.5) / 10_000) / n)

    def add(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = (timesteps / FLOW_TIMESTEPS).to(latents.dtype)[:, None, None, None]
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:  # noqa: ARG002
        return noise.float() - latents.float()

    def weights(self, timesteps: Tensor, gamma: float) -> Tensor:  # noqa: ARG002
        raise UsageError("min-snr-gamma is for diffusion models; flow matching weighs timesteps by --timestep-density")
