"""Preference losses, as functions of how well two models denoise two images.

An error is the mean over channels, height and width of the squared difference between a prediction and its target, in
float32. B is the number of pairs; every argument that is a tensor is (B,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_logits(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """How much more the model than its reference prefers the chosen image, in logits; (B,).

    u = -(beta / 2) * ((chosen - rejected) - (ref_chosen - ref_rejected)), as in the reference code of Diffusion-DPO,
    arXiv 2311.12908. The paper's pseudo-code sums over the latent's values and has no 1/2: beta here is 2 * the number of
    values * the beta there.
    """
    _same_float32(chosen, rejected, ref_chosen, ref_rejected)
    return -0.5 * beta * ((chosen - rejected) - (ref_chosen - ref_rejected))


def diffusion_dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO, arXiv 2311.12908: -log sigmoid(u); (B,)."""
    return -F.logsigmoid(dpo_logits(chosen, rejected, ref_chosen, ref_rejected, beta))


def sft(chosen: Tensor) -> Tensor:
    """Supervised fine-tuning on chosen images alone: their error; (B,)."""
    _same_float32(chosen)
    return chosen


def implicit_accuracy(logits: Tensor) -> Tensor:
    """Share of pairs whose chosen image the model prefers more than its reference does; an exact tie counts one half."""
    return (logits > 0).float().mean() + 0.5 * (logits == 0).float().mean()


def _same_float32(*errors: Tensor) -> None:
    first = errors[0]
    for error in errors:
        if error.dtype != torch.float32:
            # at beta 5000 half precision puts noise of 0.06 to 1.9 on the logits
            raise TypeError(f"errors must be float32, got {error.dtype}")
        if error.shape != first.shape or error.dim() != 1:
            raise ValueError(f"errors must all be (B,), got {[tuple(e.shape) for e in errors]}")
