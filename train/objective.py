"""The loss of a batch, from the errors of both models, and the metrics that are logged with it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import losses
from .config import TrainConfig
from .pair_denoiser import Errors
from .pairs import Pair
from .transfer import to_device


def pair_losses(errors: Errors, pairs: Sequence[Pair], config: TrainConfig) -> Tensor:
    """The loss of each pair with what regularizes it, times its labeler's weight; (B,)."""
    weights = _column([config.labeler_weights[pair.labeler] for pair in pairs], errors.chosen.device)
    loss = losses.regularized(
        _unweighted(errors, pairs, config),
        errors.chosen,
        errors.distance,
        anchor=config.anchor,
        sft_weight=config.sft_weight,
    )
    return weights * loss


def _unweighted(errors: Errors, pairs: Sequence[Pair], config: TrainConfig) -> Tensor:
    method = config.method
    settings: dict[str, Any] = {}
    if method.beta is not None:
        settings["beta"] = config.resolved_beta
    if method.uncertain_labels:
        settings["p_chosen"] = 1 - config.label_smoothing
        if config.soft_labels:
            settings["p_chosen"] = _column([pair.p_chosen for pair in pairs], errors.chosen.device)
    return getattr(losses, method.function)(*(getattr(errors, name) for name in method.errors), **settings)


def _column(values: list[float], device: torch.device) -> Tensor:
    return to_device(torch.tensor(values), device)  # torch.tensor(values, device=device) would wait for a GPU


BATCH_METRICS = (
    "loss",
    "implicit_accuracy",
    "chosen_error_delta",
    "rejected_error_delta",
    "margin",
    "dpo_weight",
)


@torch.no_grad()
def batch_metrics(errors: Errors, loss: Tensor, config: TrainConfig) -> Tensor:
    """Metrics of a batch, in the order of BATCH_METRICS; all but the loss are nan without a reference; (6,)."""
    if errors.ref_chosen is None or errors.ref_rejected is None or config.resolved_beta is None:
        return torch.cat([loss.mean()[None], torch.full((5,), float("nan"), device=loss.device)])
    logits = losses.dpo_logits(
        errors.chosen, errors.rejected, errors.ref_chosen, errors.ref_rejected, beta=config.resolved_beta
    )
    return torch.stack(
        [
            loss.mean(),
            losses.implicit_accuracy(logits),
            (errors.chosen - errors.ref_chosen).mean(),
            (errors.rejected - errors.ref_rejected).mean(),
            logits.mean(),
            torch.sigmoid(-logits).mean(),
        ]
    )
