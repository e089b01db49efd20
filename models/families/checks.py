"""Checks that every family makes of a pipeline's settings before anything is loaded."""

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

from ...core.errors import IntegrityError, UsageError
from .settings import PipelineSettings

LARGEST = 4096  # of a latent's side and of timesteps: four times what any known model has
PREDICTIONS = ("epsilon", "v_prediction", "sample")  # of diffusion models


def refuse_unnamed(settings: PipelineSettings) -> None:
    """
    Raises:
        IntegrityError: if model_index.json does not name the class of a part.
    """
    encoders = (name for name in settings.index if name.startswith("text_encoder"))
    for part in (settings.component, "vae", "scheduler", *encoders):
        value = settings.index.get(part)
        named = isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)
        absent = part.startswith("text_encoder") and value in (None, [None, None])
        if not named and not absent:
            raise IntegrityError(f"the model {settings.model} does not name the class of its {part}: it is {value!r}")


def complete_parts(settings: PipelineSettings, classes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The settings of all parts, those of `classes` (part → class of diffusers) completed with the defaults of their class.

    Each is made from its settings, without weights.

    Raises:
        IntegrityError: if a part is missing or cannot be made.
    """
    import diffusers

    parts = dict(settings.parts)
    for part, kind in classes.items():
        if not parts.get(part):
            raise IntegrityError(
                f"cannot load the model {settings.model}: its {part} is missing; fetch or save the model again"
            )
        try:
            parts[part] = deepcopy(_completed(part, getattr(diffusers, kind), json.dumps(parts[part])))
        except Exception as error:  # a constructor may raise anything
            line = (" ".join(str(error).split()) or type(error).__name__)[:300]
            raise IntegrityError(
                f"the {part} of the model {settings.model} cannot be made from its settings: {line}"
            ) from error
    return parts


@lru_cache(maxsize=64)  # a run asks twice, and a loop in every round; making a large U-Net takes a second
def _completed(part: str, kind: Any, settings: str) -> dict[str, Any]:
    import torch

    with torch.device("cpu" if part == "scheduler" else "meta"):
        return dict(kind.from_config(json.loads(settings)).config)


def refuse_others(model: str, allowed: Mapping[str, tuple[Any, Sequence[Any]]]) -> None:
    """
    Args:
        allowed: name of a setting → its value, and the values that can be used.

    Raises:
        IntegrityError: if a value is not among those.
    """
    for name, (value, choices) in allowed.items():
        if type(value) not in (int, str) or value not in choices:
            known = f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else " or ".join(map(str, choices))
            raise IntegrityError(f"the model {model} cannot be used: its {name} is {value!r}, not {known}")


def refuse_bad_scales(model: str, vae: Mapping[str, Any]) -> None:
    """
    Raises:
        IntegrityError: if the latents of a VAE cannot be scaled.
    """
    for name, value in (("scaling_factor", vae["scaling_factor"]), ("shift_factor", vae.get("shift_factor") or 0)):
        if not isinstance(value, int | float) or not math.isfinite(value) or (name == "scaling_factor" and value <= 0):
            raise IntegrityError(f"the model {model} cannot be used: the {name} of its VAE is {value!r}")


def refuse_flow_settings(settings: PipelineSettings, *values: object) -> None:
    """
    Args:
        values: of the settings that only flow-matching models have; None if not given.

    Raises:
        UsageError: if one is given for a diffusion model.
    """
    if any(value is not None for value in values):
        raise UsageError(
            "timestep-density and timestep-shift are for flow-matching models; "
            f"{settings.model} is a {settings.pipeline_class}"
        )


def component_from(model_class: str, config: Mapping[str, Any]) -> Any:
    """A U-Net or transformer of random weights, on torch's default device."""
    import diffusers

    return getattr(diffusers, model_class).from_config(config)


def scaled_latents(vae: Any, pixels: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of an AutoencoderKL's latents, (mean - shift_factor) scaling_factor."""
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return (posterior.mean - shift) * scale, posterior.std * scale
