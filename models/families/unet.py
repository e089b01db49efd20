"""What Stable Diffusion's U-Nets have in common, from the first version to XL."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ...core.errors import IntegrityError, UsageError
from .settings import PipelineSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..noise import Diffusion

MODEL_CLASS = "UNet2DConditionModel"
LORA_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
TURBO_STEPS = 4  # of adversarial distillation, arXiv 2311.17042, evenly spaced and the last one without signal
LARGEST = 4096  # of a latent's side and of timesteps: four times what any known model has
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, kw_only=True)
class UNetFamily:
    """A Family whose component is a UNet2DConditionModel. Its settings are complete once `checked`."""

    name: str
    settings: PipelineSettings
    usual: tuple[int, float]
    text_encoders: tuple[str, ...]
    prompt_tensors: tuple[str, ...]
    full_optimizer: Literal["adamw", "adafactor"]
    addition_embed_type: str | None
    """The U-Net's conditions beside the prompt's tokens."""
    encode: "Callable[[Any, list[str]], dict[str, Tensor]]"
    conditions: "Callable[[dict[str, Tensor], Tensor, tuple[int, int]], dict[str, Tensor]]"
    predict: "Callable[[Any, Tensor, Tensor, dict[str, Tensor]], Tensor]"
    distilled: bool = False
    starts_from_image: bool = False
    n_first_timesteps: int | None = None
    """Train only on this many of the first timesteps; None trains on all."""

    component: Literal["unet"] = "unet"
    model_class: str = MODEL_CLASS
    vae_class: str = "AutoencoderKL"
    lora_targets: tuple[str, ...] = LORA_TARGETS
    dtype: str = "float16"

    @property
    def pipeline_class(self) -> str:
        return self.settings.pipeline_class

    @property
    def _unet(self) -> dict[str, Any]:
        return self.settings.parts["unet"]

    @property
    def _vae(self) -> dict[str, Any]:
        return self.settings.parts["vae"]

    @property
    def resolution(self) -> int:
        return self._unet["sample_size"] * self.vae_factor

    @property
    def latent_channels(self) -> int:
        return self._vae["latent_channels"]

    @property
    def vae_factor(self) -> int:
        return 2 ** (len(self._vae["block_out_channels"]) - 1)

    @property
    def sides_multiple(self) -> int:
        """So that the U-Net can halve them."""
        return self.vae_factor * 2 ** (len(self._unet["block_out_channels"]) - 1)

    @property
    def noise(self) -> "Diffusion":
        return self._noise

    @cached_property
    def _noise(self) -> "Diffusion":
        """The noise schedule the model was trained on; with zero terminal signal-to-noise ratio by arXiv 2305.08891."""
        from diffusers import DDPMScheduler

        from ..noise import Diffusion

        settings = self.settings.parts["scheduler"]
        n = settings["num_train_timesteps"]
        timesteps = tuple(range(min(self.n_first_timesteps or n, n)))
        if self.distilled:
            timesteps = tuple(n * (k + 1) // TURBO_STEPS - 1 for k in range(TURBO_STEPS))
        zero_snr = self.distilled or bool(settings.get("rescale_betas_zero_snr"))
        return Diffusion(DDPMScheduler.from_config(settings, rescale_betas_zero_snr=zero_snr), timesteps)

    def latents(self, vae: Any, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        return (posterior.mean - shift) * scale, posterior.std * scale

    def call_arguments(self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]") -> "dict[str, Tensor]":
        return prompt | {f"negative_{name}": tensor for name, tensor in negative.items()}

    def checked(self) -> "UNetFamily":
        """See Family. Each part is made from its settings without weights, and they are completed with its class's defaults."""
        import diffusers

        model, parts = self.settings.model, dict(self.settings.parts)
        _refuse_unnamed(self.settings)
        for part, kind in (
            ("unet", self.model_class),
            ("vae", self.vae_class),
            ("scheduler", "DDPMScheduler"),
        ):
            if not parts[part]:
                raise IntegrityError(
                    f"cannot load the model {model}: its {part} is missing; fetch or save the model again"
                )
            parts[part] = _complete(model, part, getattr(diffusers, kind), parts[part])
        unet = parts["unet"]
        if unet.get("in_channels") != unet.get("out_channels"):
            raise UsageError(
                f"{model} cannot be trained: its U-Net takes {unet['in_channels']} channels and returns "
                f"{unet['out_channels']}, as models for inpainting do"
            )
        for name, expected in (("addition_embed_type", self.addition_embed_type), ("class_embed_type", None)):
            if unet.get(name) != expected:
                raise UsageError(
                    f"{model} cannot be trained: the {name} of its U-Net is {unet.get(name)}, but that of a "
                    f"{self.pipeline_class} is {expected}"
                )
        _refuse_unusable(model, unet, parts["vae"], parts["scheduler"])
        return replace(self, settings=replace(self.settings, parts=parts))


def is_distilled(settings: PipelineSettings) -> bool:
    """True for SD-turbo and SDXL-turbo: models distilled to a few steps, which sample from the last timestep on."""
    scheduler = settings.parts.get("scheduler", {})
    return (
        scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type") != "v_prediction"
        and str(scheduler.get("_class_name")).startswith("Euler")
    )


def unet_from(config: Mapping[str, Any]) -> Any:
    """A U-Net of random weights, on torch's default device."""
    import diffusers

    return getattr(diffusers, MODEL_CLASS).from_config(config)


def _refuse_unnamed(settings: PipelineSettings) -> None:
    for part in ("unet", "vae", "scheduler", *(name for name in settings.index if name.startswith("text_encoder"))):
        value = settings.index.get(part)
        named = isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)
        absent = part.startswith("text_encoder") and value in (None, [None, None])
        if not named and not absent:
            raise IntegrityError(f"the model {settings.model} does not name the class of its {part}: it is {value!r}")


def _complete(model: str, part: str, kind: Any, settings: dict[str, Any]) -> dict[str, Any]:
    import torch

    try:
        with torch.device("cpu" if part == "scheduler" else "meta"):
            return dict(kind.from_config(settings).config)
    except Exception as error:  # a constructor may raise anything
        line = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise IntegrityError(f"the {part} of the model {model} cannot be made from its settings: {line}") from error


def _refuse_unusable(model: str, unet: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]) -> None:
    """
    Raises:
        IntegrityError: if a part can be made but not used.
    """
    allowed: dict[str, tuple[Any, Sequence[Any]]] = {
        "sample_size": (unet["sample_size"], range(1, LARGEST + 1)),
        "num_train_timesteps": (scheduler["num_train_timesteps"], range(4, LARGEST + 1)),
        "prediction_type": (scheduler["prediction_type"], PREDICTIONS),
        "in_channels of the U-Net": (unet["in_channels"], (vae["latent_channels"],)),
    }
    for name, (value, choices) in allowed.items():
        if type(value) not in (int, str) or value not in choices:
            known = f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else " or ".join(map(str, choices))
            raise IntegrityError(f"the model {model} cannot be used: its {name} is {value!r}, not {known}")
    for name, value in (("scaling_factor", vae["scaling_factor"]), ("shift_factor", vae.get("shift_factor") or 0)):
        if not isinstance(value, int | float) or not math.isfinite(value) or (name == "scaling_factor" and value <= 0):
            raise IntegrityError(f"the model {model} cannot be used: the {name} of its VAE is {value!r}")
