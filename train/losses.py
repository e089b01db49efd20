"""Preference losses, as functions of how well two models denoise two images.

An error is the mean over channels, height and width of the squared difference between a prediction and its target, in
float32. B is the number of pairs; every argument that is a tensor is (B,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_logits(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """The DPO logit: implicit reward of the chosen minus the rejected image, relative to the reference; (B,).

    u = -(beta / 2) * ((chosen - rejected) - (ref_chosen - ref_rejected)), as in the reference code of Diffusion-DPO,
    arXiv 2311.12908. The paper's pseudo-code sums over the latent's values and has no 1/2: beta here is 2 * the number of
    values * the paper's beta.
    """
    _same_float32(chosen, rejected, ref_chosen, ref_rejected)
    return -0.5 * beta * ((chosen - rejected) - (ref_chosen - ref_rejected))


def diffusion_dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    p_chosen: Tensor | float = 1.0,
) -> Tensor:
    """Diffusion-DPO, arXiv 2311.12908: -log sigmoid(u); (B,).

    If labels are uncertain, -p log sigmoid(u) - (1 - p) log sigmoid(-u): conservative DPO with one p below 1 for all pairs
    (section "cDPO" of Eric Mitchell's note on noisy preferences, 2023), soft labels with a p for each pair.
    """
    logits = dpo_logits(chosen, rejected, ref_chosen, ref_rejected, beta)
    return -(p_chosen * F.logsigmoid(logits) + (1 - p_chosen) * F.logsigmoid(-logits))


def ipo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """Identity preference optimization, arXiv 2310.12036, on denoising errors: (x - 1 / (2 beta))^2; (B,).

    x = -((chosen - rejected) - (ref_chosen - ref_rejected)). The gap is pulled to a finite size, so it cannot saturate.
    """
    _same_float32(chosen, rejected, ref_chosen, ref_rejected)
    return ((rejected - chosen) - (ref_rejected - ref_chosen) - 1 / (2 * beta)).square()


def hinge(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """The hinge loss of SLiC, arXiv 2305.10425, on denoising errors: max(0, 1 - beta x); (B,). x as in `ipo`."""
    _same_float32(chosen, rejected, ref_chosen, ref_rejected)
    return F.relu(1 - beta * ((rejected - chosen) - (ref_rejected - ref_chosen)))


def mapo(chosen: Tensor, rejected: Tensor, beta: float, n_timesteps: int = 1000, scale: float = 0.5) -> Tensor:
    """Margin-aware preference optimization (MaPO), arXiv 2406.06424; no reference; (B,).

    chosen - beta log sigmoid(n_timesteps (phi(chosen) - phi(rejected))), phi(e) = s e / (exp(s e) - 1) with s = `scale`:
    the likelihood of an image falls with its error. The paper's beta is 0.1.
    """
    _same_float32(chosen, rejected)
    better, worse = (scale * error / torch.expm1(scale * error) for error in (chosen, rejected))
    return chosen - beta * F.logsigmoid(n_timesteps * (better - worse))


def kto(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """Diffusion-KTO, arXiv 2404.04465: each chosen image is liked and each rejected one disliked, independently; (B,).

    1 - sigmoid(beta (g - z)) for liked and 1 - sigmoid(beta (z - g)) for disliked images, averaged over the two images of a
    pair. g is the reference's error minus the model's; z is the batch's mean g, at least 0 and without gradient. z depends
    on the batch, so accumulating small batches is not the same as one large batch.
    """
    _same_float32(chosen, rejected, ref_chosen, ref_rejected)
    liked, disliked = ref_chosen - chosen, ref_rejected - rejected
    baseline = torch.cat([liked, disliked]).mean().clamp(min=0).detach()
    return 0.5 * (torch.sigmoid(-beta * (liked - baseline)) + torch.sigmoid(beta * (disliked - baseline)))


def nft(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_distance: Tensor,
    rejected_distance: Tensor,
    beta: float,
    p_chosen: Tensor | float = 1.0,
) -> Tensor:
    """DiffusionNFT, arXiv 2509.16117, the rewards of its images taken from pairs; averaged over the two images, (B,).

    Of an image with reward r, w = 2 r - 1, target v, prediction f and the reference's prediction g, the paper's loss is
    r |(1 - beta) g + beta f - v|^2 + (1 - r) |(1 + beta) g - beta f - v|^2, over beta. Up to a constant that is
    w (|f - v|^2 - |g - v|^2 - |f - g|^2) + beta |f - g|^2: a regression of f on g + (w / beta) (v - g). r is here the
    probability that the image is preferred, so over all pairs of a prompt the mean w of an image is how much more often than
    not it beats the others. The paper divides each image's error by its size and also penalizes the distance to the first
    model; here both are left out.

    Args:
        chosen_distance: mean squared distance between the policy's and the reference's prediction, (B,); see
            `prediction_distances`.
        rejected_distance: likewise.
    """
    _same_float32(chosen, rejected, ref_chosen, ref_rejected, chosen_distance, rejected_distance)
    weight = 2 * p_chosen - 1
    toward = weight * (chosen - ref_chosen - chosen_distance) + beta * chosen_distance
    away = -weight * (rejected - ref_rejected - rejected_distance) + beta * rejected_distance
    return 0.5 * (toward + away)


def safeguarded(rejected: Tensor, chosen_residual: Tensor, rejected_residual: Tensor, mu: float) -> Tensor:
    """The rejected error with its gradient scaled so that a step on it cannot raise the chosen one; (B,).

    The safeguard of SDPO, arXiv 2511.03317, for any pairwise loss: the gradient of the rejected error is multiplied by
    lambda = clip((1 - mu) |g_chosen|^2 / (g_chosen . g_rejected), 0, 1) if the two gradients with respect to the model's
    output agree in direction, otherwise by 1. The value does not change.

    Args:
        chosen_residual: prediction minus target, (B, ...); the gradient of a mean squared error is 2 / n times it.
        rejected_residual: likewise.
        mu: fraction of the chosen image's gradient that is protected, 0..1; the paper uses 0.9 for SD 1.5 and 0.6 for SDXL.
    """
    g_chosen, g_rejected = (r.detach().float().flatten(1) for r in (chosen_residual, rejected_residual))
    along = (g_chosen * g_rejected).sum(1)
    bound = (1 - mu) * g_chosen.square().sum(1) / along.clamp(min=torch.finfo(torch.float32).tiny)
    factor = torch.where(along > 0, bound.clamp(0, 1), torch.ones_like(along))
    return rejected.detach() + factor * (rejected - rejected.detach())


def prediction_distances(residual: Tensor, ref_residual: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared distance between the predictions of policy and reference for the chosen and the rejected images; each (B,).

    It is the KL divergence between a denoising step of either model, up to a factor that depends on the timestep.

    Args:
        residual: the policy's prediction minus the target, which cancels, (2B, ...); chosen images first.
        ref_residual: likewise of the reference; no gradient flows into it.
    """
    if residual.dtype != torch.float32 or ref_residual.dtype != torch.float32:
        raise TypeError(f"predictions must be float32, got {residual.dtype} and {ref_residual.dtype}")
    chosen, rejected = (residual - ref_residual.detach()).square().flatten(1).mean(1).chunk(2)
    return chosen, rejected


def regularized(
    loss: Tensor, chosen: Tensor, distance: Tensor | None, *, anchor: float = 0.0, sft_weight: float = 0.0
) -> Tensor:
    """A pairwise loss plus `anchor` times the distance and `sft_weight` times the chosen error; (B,).

    The second term is what arXiv 2404.19733 adds to DPO of language models, with the error in place of the negative
    log-likelihood. With both weights 0 it is the loss itself.

    Args:
        distance: mean of the two `prediction_distances`; needed only by `anchor`.
    """
    if anchor:
        if distance is None:
            raise ValueError("an anchor needs the distance between the predictions of policy and reference")
        _same_float32(chosen, distance)
        loss = loss + anchor * distance
    if sft_weight:
        _same_float32(chosen, loss)
        loss = loss + sft_weight * chosen
    return loss


def sft(chosen: Tensor) -> Tensor:
    """Supervised fine-tuning on chosen images, the SFT baseline of Diffusion-DPO, arXiv 2311.12908: their error; (B,)."""
    _same_float32(chosen)
    return chosen


def implicit_accuracy(logits: Tensor) -> Tensor:
    """Fraction of pairs whose chosen image the model prefers more than its reference does; an exact tie counts one half."""
    return (logits > 0).float().mean() + 0.5 * (logits == 0).float().mean()


def _same_float32(*errors: Tensor) -> None:
    first = errors[0]
    for error in errors:
        if error.dtype != torch.float32:
            # at beta 5000 half precision puts noise of 0.06 to 1.9 on the logits
            raise TypeError(f"errors must be float32, got {error.dtype}")
        if error.shape != first.shape or error.dim() != 1:
            raise ValueError(f"errors must all be (B,), got {[tuple(e.shape) for e in errors]}")
