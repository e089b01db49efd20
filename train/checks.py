"""Checks of settings, whose errors name the option."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from ..core.errors import UsageError
from .methods import METHODS
from .sharding_checks import refuse_unsplittable

if TYPE_CHECKING:
    from .config import TrainConfig

MAX_LEARNING_RATE = 1e4


def check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    """None passes, as in check_range: it is the default of a setting that may be left out."""
    if value is not None and value not in choices:
        raise UsageError(f"unknown {name.replace('_', '-')} {value!r}; choose from {', '.join(choices)}")


def check_range(
    name: str,
    value: float | None,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    if value is None:
        return
    option = name.replace("_", "-")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        is_finite = False
    if not is_finite:
        raise UsageError(f"{option} must be a finite number, got {value}")
    if value <= above and above > -math.inf:
        raise UsageError(f"{option} must be above {above:g}, got {value:g}")
    if not at_least <= value <= at_most:
        limit = f"at least {at_least:g}" if value < at_least else f"at most {at_most:g}"
        raise UsageError(f"{option} must be {limit}, got {value:g}")


def refuse_contradictions(config: "TrainConfig") -> None:
    """
    Raises:
        UsageError: if two settings cannot be used together.
    """
    rate = config.learning_rate
    if config.scale_lr:
        rate *= config.train_batch_size * config.gradient_accumulation_steps
        if rate > MAX_LEARNING_RATE:
            raise UsageError(f"learning-rate {config.learning_rate:g} times the pairs per step is {rate:g}; lower it")
    if rate * config.adam_weight_decay >= 1:
        raise UsageError(
            f"adam-weight-decay {config.adam_weight_decay:g} at learning-rate {rate:g} removes a whole weight in one step; lower it"
        )
    if config.beta is not None and config.method.beta is None:
        raise UsageError(f"the loss {config.loss} has no beta; leave --beta out")
    if config.safeguard is not None and not config.method.pairwise:
        raise UsageError(f"safeguard needs a pairwise loss ({_names('pairwise')}); {config.loss} is not one")
    if config.anchor and not config.method.can_be_anchored:
        raise UsageError(
            f"anchor needs a pairwise loss with a reference ({_names('can_be_anchored')}); {config.loss} is not one"
        )
    if config.needs_distance and config.reference_draws:
        what = "anchor" if config.anchor else f"the loss {config.loss}"
        raise UsageError(
            f"{what} compares predictions, but reference-draws keeps only the reference's errors; leave one out"
        )
    if config.sft_weight and not config.method.pairwise:
        raise UsageError(f"sft-weight needs a pairwise loss ({_names('pairwise')}); {config.loss} is not one")
    if (config.soft_labels or config.label_smoothing) and not config.method.uncertain_labels:
        raise UsageError(
            f"soft-labels and label-smoothing are for the loss {_names('uncertain_labels')}, not {config.loss}"
        )
    if config.soft_labels and config.label_smoothing:
        raise UsageError("give soft-labels or label-smoothing, not both")
    if config.reference_draws and not config.needs_reference:
        raise UsageError(f"reference-draws needs a loss with a reference ({_names('needs_reference')})")
    if config.reference is not None and not config.needs_reference:
        raise UsageError(
            f"reference needs a loss with a reference ({_names('needs_reference')}); {config.loss} is not one"
        )
    if config.reference is not None and config.reference_draws:
        raise UsageError(
            "reference-draws keeps errors of the model that training starts from; leave it or reference out"
        )
    if config.reference_draws and config.min_snr_gamma is not None:
        raise UsageError("reference-draws and min-snr-gamma cannot be combined; leave one out")
    if config.quantize != "no" and not config.lora_rank:
        raise UsageError(f"quantize {config.quantize} is for a LoRA's frozen weights; give a --lora-rank above 0")
    if config.format == "lora" and not config.lora_rank:
        raise UsageError("--format lora needs a --lora-rank above 0")
    if config.kohya_file and not config.lora_rank:
        raise UsageError("kohya is a format for LoRAs; give a --lora-rank above 0")
    refuse_unsplittable(config)
    if config.push_to_hub is not None:
        from .export.hub import refuse_bad_name  # the hub's client takes a while to import

        refuse_bad_name(config.push_to_hub)


def _names(trait: str) -> str:
    return ", ".join(name for name, method in METHODS.items() if getattr(method, trait))
