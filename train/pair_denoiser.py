"""The denoising errors of the model and of its reference on the pairs of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..models.resolve import Model
from .config import TrainConfig
from .data import Batch
from .denoise import NoisyPair, chosen_alone, min_snr_weights, noisy_pair, pair_errors, residuals
from .losses import safeguarded
from .policy import Policy, load_unet


@dataclass(frozen=True)
class Errors:
    """Of B pairs, each (B,) float32. The reference's are None where it was not asked, and the rejected images' nan where
    the loss looks at the chosen ones alone."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None


class PairDenoiser:
    """Asks both models to denoise."""

    def __init__(
        self, policy: Policy, unet: Any, noise_scheduler: Any, config: TrainConfig, accelerator: Accelerator
    ) -> None:
        self.policy, self.noise_scheduler, self.config, self.accelerator = policy, noise_scheduler, config, accelerator
        self.unet = unet
        """The model as accelerate has it."""

    def of_the_beginning(self, model: Model) -> "PairDenoiser":
        """The same with the weights that the run began with: for one that is under way and keeps no reference in memory."""
        if self.policy.has_reference:
            return self
        policy = Policy(load_unet(model), self.config).to(self.accelerator.device)
        return PairDenoiser(policy, policy.unet, self.noise_scheduler, self.config, self.accelerator)

    def errors(self, batches: Sequence[Batch]) -> Errors:
        """The model's, to learn from, and the reference's where the loss wants them."""
        return joined([self._errors(batch) for batch in batches])

    def _errors(self, batch: Batch) -> Errors:
        pair = self._noisy(batch)
        if not self.config.method.needs_rejected:
            with self.accelerator.autocast():
                alone = residuals(self.unet, chosen_alone(pair)).square().mean(dim=(1, 2, 3))
            chosen = alone if (weights := self._weights(pair)) is None else weights * alone
            return Errors(chosen, torch.full_like(chosen, torch.nan))
        reference: tuple[Tensor, Tensor] | None = None
        # both models run in the same dtype, so that their rounding cancels in the difference
        with self.accelerator.autocast():
            if batch.ref_chosen is not None and batch.ref_rejected is not None:
                reference = (self._there(batch.ref_chosen), self._there(batch.ref_rejected))
            elif self.config.needs_reference:
                with self.policy.reference(self.unet) as unet:
                    reference = pair_errors(residuals(unet, pair), self._weights(pair))
            residual = residuals(self.unet, pair)
        chosen, rejected = pair_errors(residual, self._weights(pair))
        if self.config.safeguard is not None:
            rejected = safeguarded(rejected, *residual.chunk(2), mu=self.config.safeguard)
        own = Errors(chosen, rejected)
        return own if reference is None else replace(own, ref_chosen=reference[0], ref_rejected=reference[1])

    @torch.no_grad()
    def policy_errors(self, batches: Sequence[Batch]) -> Errors:
        """The model's alone, as it stands, in this process alone."""
        return joined([self._plain(self.policy.unet, batch) for batch in batches])

    def reference_errors(self, batches: Sequence[Batch]) -> Errors:
        """The reference's as if it were the model; see Policy.reference for where it can be asked."""
        with self.policy.reference(self.policy.unet) as unet:
            return joined([self._plain(unet, batch) for batch in batches])

    def _plain(self, unet: Any, batch: Batch) -> Errors:
        pair = self._noisy(batch)
        with self.accelerator.autocast():
            return Errors(*pair_errors(residuals(unet, pair), self._weights(pair)))

    def _there(self, part: Tensor) -> Tensor:
        return part.to(self.accelerator.device)

    def _noisy(self, batch: Batch) -> NoisyPair:
        parts = (batch.chosen, batch.rejected, batch.hidden, batch.noise, batch.timesteps)
        optional = (batch.input_noise, batch.pooled, batch.time_ids)
        return noisy_pair(
            self.noise_scheduler,
            *(self._there(part) for part in parts),
            *(None if part is None else self._there(part) for part in optional),
        )

    def _weights(self, pair: NoisyPair) -> Tensor | None:
        if self.config.min_snr_gamma is None:
            return None
        return min_snr_weights(self.noise_scheduler, pair.timesteps.chunk(2)[0], self.config.min_snr_gamma)


def joined(parts: Sequence[Errors]) -> Errors:
    """The errors of several batches, one after the other."""
    columns = zip(*((part.chosen, part.rejected, part.ref_chosen, part.ref_rejected) for part in parts), strict=True)
    return Errors(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
