"""What generating will take, from configs alone: FLOPs are counted, time follows from a measured rate, disk from the pixels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import IntegrityError, UsageError
from ..core.text import duration, size
from ..models.families import Family, family_of
from .config import GenerateConfig

if TYPE_CHECKING:
    from ..models.cost.flop_counter import PassCost
    from ..models.cost.speed import DeviceSpeed
    from .stage import Plan

BYTES_PER_PIXEL = 1.5
"""Of a PNG of a photograph; those of flat drawings are far smaller."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of the images of a plan that are missing; `dataclasses.asdict` turns it into JSON."""

    device: str
    flops_per_image: int
    """Of denoising; encoding the prompt and decoding the image are not in it, nor in the time."""
    flops: int
    seconds: float
    bytes_on_disk: int


def estimate(planned: "Plan") -> Estimate | None:
    """Loads no weights. None if the model belongs to no family whose cost can be counted.

    Raises:
        PrefloopError: if its settings cannot be read or fetched.
    """
    import torch

    from ..core.device import best_device
    from ..models.cost.components import with_text_defaults
    from ..models.cost.speed import measured_speed

    config, n = planned.config, len(planned.missing)
    try:
        family = with_text_defaults(family_of(planned.model))
    except (UsageError, IntegrityError):
        return None
    device = best_device(config.device)
    speed = measured_speed(torch.device(device))
    each = flops_per_image(family, config)
    return Estimate(
        device=device,
        flops_per_image=each,
        flops=n * each,
        seconds=speed.seconds(n * each, precision_of(config.dtype, family, speed)),
        bytes_on_disk=png_bytes(n, config.resolution or family.resolution),
    )


def flops_per_image(family: Family, config: GenerateConfig) -> int:
    """Of denoising one image.

    Args:
        family: with checked settings, those of text encoders too.
        config: as `resolve_defaults` returns it.
    """
    assert config.num_inference_steps is not None
    once = denoising_pass(family, config).forward_flops
    return config.num_inference_steps * (2 if is_guided(family, config) else 1) * once


def denoising_pass(family: Family, config: GenerateConfig) -> "PassCost":
    """One pass of one image through the model, with or without its prompt; bytes are those in float32.

    Args:
        family: with checked settings, those of text encoders too.
    """
    import torch

    from ..models.cost.components import trained_component
    from ..models.cost.flop_counter import count_pass

    side = config.resolution or family.resolution
    model = trained_component(family, 0, None).model.eval().requires_grad_(False)
    latents = side // family.vae_factor
    with torch.device("meta"):
        noisy, timesteps = torch.empty(1, family.latent_channels, latents, latents), torch.empty(1)
        prompts = {name: torch.empty(1, *shape) for name, shape in family.prompt_shapes().items()}
    conditions = family.conditions(prompts, torch.zeros(1, 4), (side, side))
    conditions = {name: tensor.to("meta") for name, tensor in conditions.items()}
    return count_pass(model, lambda: family.predict(model, noisy, timesteps, conditions), None, {})


def is_guided(family: Family, config: GenerateConfig) -> bool:
    """Whether each step runs the model once with and once without the prompt; a distilled one takes the guidance scale as an
    input instead."""
    assert config.guidance_scale is not None
    return config.guidance_scale > 1 and not family.settings.parts[family.component].get("guidance_embeds")


def precision_of(dtype: str, family: Family, speed: "DeviceSpeed") -> str:
    """What a data type of `generate` is called by `mixed_precision`; auto is the family's on a GPU and float32 elsewhere."""
    if dtype == "auto":
        dtype = family.dtype if speed.device.startswith("cuda") else "float32"
    return {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "no")


def png_bytes(n_images: int, side: int) -> int:
    """On disk, at most.

    Args:
        side: in pixels.
    """
    return round(n_images * side * side * BYTES_PER_PIXEL)


def describe(estimated: Estimate | None, pipeline_class: str) -> str:
    """A line for a terminal."""
    if estimated is None:
        return f"how long that takes is not known: the cost of a {pipeline_class} cannot be counted"
    return (
        f"about {duration(estimated.seconds)} on {estimated.device} ({estimated.flops_per_image / 1e12:.3g} TFLOP per image; an "
        f"estimate without loading, prompts and decoding), up to "
        f"{size(estimated.bytes_on_disk)} of disk"
    )
