"""The loss that the settings ask for, from the errors of both models, and what is logged of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import losses
from .config import TrainConfig
from .pair_denoiser import Errors
from .pairs import Pair


def pair_losses(errors: Errors, pairs: Sequence[Pair], config: TrainConfig) -> Tensor:
    """The loss of each pair, times its labeler's weight; (B,)."""
    weights = torch.tensor([config.labeler_weights[pair.labeler] for pair in pairs], device=errors.chosen.device)
    return weights * _unweighted(errors, pairs, config)


def _unweighted(errors: Errors, pairs: Sequence[Pair], config: TrainConfig) -> Tensor:
    if config.loss == "sft":
        return losses.sft(errors.chosen)
    if config.loss == "mapo":
        return losses.mapo(errors.chosen, errors.rejected, config.beta)
    assert errors.ref_chosen is not None
    assert errors.ref_rejected is not None
    four = (errors.chosen, errors.rejected, errors.ref_chosen, errors.ref_rejected)
    if config.loss == "dpo":
        p_chosen: Tensor | float = 1 - config.label_smoothing
        if config.soft_labels:
            p_chosen = torch.tensor([pair.p_chosen for pair in pairs], device=errors.chosen.device)
        return losses.diffusion_dpo(*four, beta=config.beta, p_chosen=p_chosen)
    return {"ipo": losses.ipo, "hinge": losses.hinge, "kto": losses.kto}[config.loss](*four, beta=config.beta)


SHOWN = (
    "loss",
    "implicit_accuracy",
    "chosen_error_delta",
    "rejected_error_delta",
    "margin",
    "dpo_weight",
)


@torch.no_grad()
def shown(errors: Errors, loss: Tensor, config: TrainConfig) -> Tensor:
    """What is logged of a batch, in the order of SHOWN; nan where there is no reference; (6,)."""
    if errors.ref_chosen is None or errors.ref_rejected is None:
        return torch.cat([loss.mean()[None], torch.full((5,), float("nan"), device=loss.device)])
    four = (errors.chosen, errors.rejected, errors.ref_chosen, errors.ref_rejected)
    logits = losses.dpo_logits(*four, beta=config.beta)
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
