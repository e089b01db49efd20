"""How often a run validates, and on how many held-out pairs: by default a small part of what training computes."""

import math
from dataclasses import dataclass

from ..config import TrainConfig

SHARE = 0.03
"""Of what the run computes, for all validation passes together, unless the least numbers below need more."""
N_BINS = 5
"""Bins of timesteps; each held-out pair is denoised once in each."""
MAX_PAIRS = 256  # more narrow the interval by little and cost time
LEAST_PAIRS = 64  # the interval of implicit accuracy is about 0.2 wide
PASSES = 10
"""Fewer pairs are taken until there are this many passes."""
MAX_PASSES, LEAST_PASSES = 20, 5
LEAST_STEPS = 50
"""Passes are at least as many steps apart. It was the default of runs that recorded none."""
_ROUND = 10  # steps of a row of metrics.csv


@dataclass(frozen=True)
class ValidationPlan:
    steps: int
    """Optimizer steps between passes; there is one after the last step too."""
    n_pairs: int
    """Held-out pairs of each pass."""

    def n_denoised(self, config: TrainConfig) -> int:
        """Pairs that all passes denoise, those of the reference before the first step included."""
        n_passes = math.ceil(config.max_train_steps / self.steps) + _passes_before(config)
        return n_passes * self.n_pairs * N_BINS


def plan_validation(config: TrainConfig, n_held_out: int) -> ValidationPlan:
    """The steps given and at most MAX_PAIRS. If no steps are given, both follow from SHARE: first the pairs are fewer, down to
    LEAST_PAIRS, then the passes, down to LEAST_PASSES and those that early stopping waits for.

    Args:
        n_held_out: pairs of held-out prompts.
    """
    if config.validation_steps is not None:
        return ValidationPlan(config.validation_steps, min(n_held_out, MAX_PAIRS))
    before, least = _passes_before(config), LEAST_PASSES + config.early_stopping
    affordable = SHARE * _training_cost(config) / N_BINS  # pairs of a pass times passes
    n_pairs = min(n_held_out, MAX_PAIRS, max(LEAST_PAIRS, int(affordable / (max(PASSES, least) + before))))
    n_passes = int(affordable / max(1, n_pairs)) - before
    steps = config.max_train_steps / max(min(n_passes, MAX_PASSES), least)
    return ValidationPlan(max(LEAST_STEPS, math.ceil(steps / _ROUND) * _ROUND), n_pairs)


def _passes_before(config: TrainConfig) -> int:
    """Passes before the first step: the reference's, and the policy's if that is another model."""
    return 1 if config.reference is None else 2


def _training_cost(config: TrainConfig) -> float:
    """What training computes on one device, in forward passes of a pair; at least.

    A backward pass costs as much as a forward pass for a LoRA and twice as much if all weights are trained.
    """
    n_pairs = config.max_train_steps * config.train_batch_size * config.gradient_accumulation_steps
    backward = 1 if config.lora_rank else 2
    reference = 1 if config.needs_reference and not config.reference_draws else 0
    images = 1.0 if config.method.needs_rejected else 0.5  # of the pair's two
    return n_pairs * images * (1 + reference + backward)
