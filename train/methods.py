"""The losses of `train`: everything but the function itself, which is in losses.py. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass

BOTH = ("chosen", "rejected")
WITH_REFERENCE = (*BOTH, "ref_chosen", "ref_rejected")
WITH_DISTANCES = (*WITH_REFERENCE, "chosen_distance", "rejected_distance")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A loss as options, help, model card and cost estimate need it."""

    function: str
    """Name of its function in losses.py, which takes `errors` in their order, then `beta` if there is a default."""
    title: str
    arxiv: str
    """Where it was published."""
    errors: tuple[str, ...]
    """The fields of pair_denoiser.Errors that it is a function of."""
    beta: float | None
    """Its default strength; None if it has no such factor."""
    pairwise: bool = False
    """A function of the difference between the chosen and the rejected error, which the safeguard can bound."""
    uncertain_labels: bool = False
    """Also takes `p_chosen`, the probability that a label is right."""
    first_slope: Callable[[float], float] | None = None
    """From beta to the derivative of the loss by the chosen error while the policy is its reference; the rejected error's is the
    opposite. Weights of terms that are added to the loss are compared with it."""
    starts_at_zero: bool = False
    """Whether it is 0 while the policy is its reference, so that how often it has doubled says nothing."""
    uses_dpo_weight: bool = False
    """Whether a pair's gradient is weighted by sigma(-u), which `dpo_weight` reports."""

    @property
    def needs_reference(self) -> bool:
        return "ref_chosen" in self.errors

    @property
    def needs_distance(self) -> bool:
        return "chosen_distance" in self.errors

    @property
    def can_be_anchored(self) -> bool:
        """Whether both models predict both images, so that the distance between their predictions can be added."""
        return self.pairwise and self.needs_reference

    @property
    def needs_rejected(self) -> bool:
        return "rejected" in self.errors

    @property
    def summary(self) -> str:
        """One line of the help."""
        return self.title if self.beta is None else f"{self.title} (beta {self.beta:g})"


# 500 is for the latents of the built-in world, 8 x 8 x 8; recipes set what suits Stable Diffusion
METHODS = {
    "dpo": Method(
        function="diffusion_dpo",
        title="Diffusion-DPO",
        arxiv="2311.12908",
        errors=WITH_REFERENCE,
        beta=500.0,
        pairwise=True,
        uncertain_labels=True,
        first_slope=lambda beta: beta / 4,
        uses_dpo_weight=True,
    ),
    "sft": Method(
        function="sft",
        title="supervised fine-tuning on chosen images",
        arxiv="2311.12908",
        errors=("chosen",),
        beta=None,
    ),
    "ipo": Method(
        function="ipo",
        title="IPO on denoising errors",
        arxiv="2310.12036",
        errors=WITH_REFERENCE,
        beta=500.0,
        pairwise=True,
        first_slope=lambda beta: 1 / beta,
    ),
    "hinge": Method(
        function="hinge",
        title="SLiC's hinge loss on denoising errors",
        arxiv="2305.10425",
        errors=WITH_REFERENCE,
        beta=500.0,
        pairwise=True,
        first_slope=lambda beta: beta,
    ),
    "mapo": Method(
        function="mapo",
        title="MaPO, which needs no reference",
        arxiv="2406.06424",
        errors=BOTH,
        beta=0.1,
        pairwise=True,
    ),
    "kto": Method(
        function="kto",
        title="Diffusion-KTO",
        arxiv="2404.04465",
        errors=WITH_REFERENCE,
        beta=500.0,
    ),
    "nft": Method(
        function="nft",
        title="DiffusionNFT on pairs",
        arxiv="2509.16117",
        errors=WITH_DISTANCES,
        beta=0.3,
        uncertain_labels=True,
        starts_at_zero=True,
    ),
}
