"""The beta at which the margins of a run would leave a given DPO weight. Nothing uses it: it is for choosing the next --beta."""

import math

import numpy as np

from ..config import TrainConfig
from .evidence import MIN_STEPS, RECENT, summarize
from .tables import Rows, column

DPO_WEIGHT = 0.2
"""What automatic betas aim at: 1/2 is a policy that equals its reference, and near 0 nothing is left to learn."""
KEY = "beta_for_dpo_weight_0_2"
"""Its name in the summary of a run."""


def beta_for_dpo_weight(metrics: Rows, config: TrainConfig) -> float | None:
    """The beta at which the mean training margin of the last RECENT rows has a weight sigma(-u) of DPO_WEIGHT.

    u = -(beta / 2) m with the margin m in errors, so beta = 2 log(0.8 / 0.2) / |m| = 2.77 / |m|. Fixing the weight this way
    while training would remove the constant pull toward the reference.

    Returns:
        None without evidence: for a loss that dpo_weight does not weight, on fewer than MIN_STEPS steps at the full learning
        rate, or if not all of those rows are above 0, so that the mean may be noise.
    """
    if not config.method.uses_dpo_weight or config.resolved_beta is None:
        return None
    recent = column(metrics, "margin")[1:][-RECENT:]  # mean logits u at the run's own beta
    if summarize(metrics, []).steps_at_full_rate < MIN_STEPS or len(recent) < RECENT or not (recent > 0).all():
        return None
    margin = 2 * float(np.mean(recent)) / config.resolved_beta
    beta = 2 * math.log((1 - DPO_WEIGHT) / DPO_WEIGHT) / margin
    return beta if math.isfinite(beta) else None


def probe_line(beta: float) -> str:
    """What a run prints about it."""
    return (
        f"for choosing --beta: at {float(f'{beta:.3g}'):g} the mean margin of the last steps would have a DPO weight of "
        f"{DPO_WEIGHT:.2f}; this run did not use it"
    )
