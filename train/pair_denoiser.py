"""The denoising errors of the policy and of its reference on the pairs of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..models.loading import load_component
from ..models.model import Model
from .batch import Batch
from .config import TrainConfig
from .data import noise_of
from .denoise import NoisyPair, chosen_only, noisy_pair, pair_errors, residuals
from .losses import prediction_distances, safeguarded
from .policy import Policy


@dataclass(frozen=True)
class Errors:
    """Errors of B pairs, each (B,) float32. The reference's are None if it was not run, and the rejected images' nan if the
    loss looks only at the chosen ones."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
    chosen_distance: Tensor | None = None
    """Between both models' predictions, see `prediction_distances`; None if neither the loss nor an anchor uses it."""
    rejected_distance: Tensor | None = None

    @property
    def distance(self) -> Tensor | None:
        """Averaged over both images of a pair."""
        if self.chosen_distance is None or self.rejected_distance is None:
            return None
        return 0.5 * (self.chosen_distance + self.rejected_distance)


class PairDenoiser:
    """Runs both models on noisy pairs."""

    def __init__(self, policy: Policy, component: Any, config: TrainConfig, accelerator: Accelerator) -> None:
        self.policy, self.config, self.accelerator = policy, config, accelerator
        self.family = policy.family
        self.noise = noise_of(policy.family, config)
        self.component = component
        """The policy's U-Net or transformer as accelerate wraps it."""

    def with_initial_weights(self, model: Model) -> "PairDenoiser":
        """The same with the weights that the run began with: for a resumed run that keeps no reference in memory."""
        if self.policy.has_reference:
            return self
        policy = Policy(load_component(model), self.config, self.family).to(self.accelerator.device)
        return PairDenoiser(policy, policy.component, self.config, self.accelerator)

    def errors(self, batches: Sequence[Batch]) -> Errors:
        """The policy's with gradients, and the reference's if the loss needs them."""
        return concat([self._errors(batch) for batch in batches])

    def _errors(self, batch: Batch) -> Errors:
        batch = batch.to(self.accelerator.device)
        pair, weights = self._noisy(batch), self._weights(batch)
        if not self.config.method.needs_rejected:
            with self.accelerator.autocast():
                unweighted = self._residuals(self.component, chosen_only(pair)).square().mean(dim=(1, 2, 3))
            chosen = unweighted if weights is None else weights * unweighted
            return Errors(chosen, torch.full_like(chosen, torch.nan))
        reference: tuple[Tensor, Tensor] | None = None
        ref_residual: Tensor | None = None
        # both models run in the same dtype, so that their rounding cancels in the difference
        with self.accelerator.autocast():
            if batch.ref_chosen is not None and batch.ref_rejected is not None:
                reference = batch.ref_chosen, batch.ref_rejected
            elif self.config.needs_reference:
                with self.policy.reference(self.component) as component:
                    ref_residual = self._residuals(component, pair)
                    reference = pair_errors(ref_residual, weights)
                if not self.config.needs_distance:
                    ref_residual = None  # not in memory while the policy runs
            residual = self._residuals(self.component, pair)
        chosen, rejected = pair_errors(residual, weights)
        if self.config.safeguard is not None:
            rejected = safeguarded(rejected, *residual.chunk(2), mu=self.config.safeguard)
        errors = Errors(chosen, rejected)
        if ref_residual is not None:
            distances = prediction_distances(residual, ref_residual)
            if weights is not None:
                distances = weights * distances[0], weights * distances[1]
            errors = replace(errors, chosen_distance=distances[0], rejected_distance=distances[1])
        return errors if reference is None else replace(errors, ref_chosen=reference[0], ref_rejected=reference[1])

    @torch.no_grad()
    def policy_errors(self, batches: Sequence[Batch]) -> Errors:
        """Policy errors without gradient, on the unwrapped model: in this process alone."""
        return concat([self._errors_of(self.policy.component, batch) for batch in batches])

    def reference_errors(self, batches: Sequence[Batch]) -> Errors:
        """The reference's errors as `chosen` and `rejected`; Policy.reference says when they can be computed."""
        with self.policy.reference(self.policy.component) as component:
            return concat([self._errors_of(component, batch) for batch in batches])

    def _errors_of(self, component: Any, batch: Batch) -> Errors:
        batch = batch.to(self.accelerator.device)
        with self.accelerator.autocast():
            return Errors(*pair_errors(self._residuals(component, self._noisy(batch)), self._weights(batch)))

    def _residuals(self, component: Any, pair: NoisyPair) -> Tensor:
        return residuals(self.family, component, pair)

    def _noisy(self, batch: Batch) -> NoisyPair:
        parts = (batch.chosen, batch.rejected, batch.conditions, batch.noise, batch.timesteps, batch.input_noise)
        return noisy_pair(self.noise, *parts)

    def _weights(self, batch: Batch) -> Tensor | None:
        gamma = self.config.min_snr_gamma
        return None if gamma is None else self.noise.weights(batch.timesteps, gamma)


def concat(parts: Sequence[Errors]) -> Errors:
    """The errors of several batches, one after the other."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Errors))
    return Errors(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
