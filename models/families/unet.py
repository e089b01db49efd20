"""What Stable Diffusion's U-Nets have in common, from the first version to XL."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ...core.errors import UsageError
from .checks import (
    LARGEST,
    PREDICTIONS,
    complete_parts,
    refuse_bad_scales,
    refuse_flow_settings,
    refuse_others,
    refuse_unnamed,
    scaled_latents,
)
from .settings import PipelineSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..density import Density
    from ..noise import Diffusion

MODEL_CLASS = "UNet2DConditionModel"
LORA_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
TURBO_STEPS = 4  # of adversarial distillation, arXiv 2311.17042, evenly spaced and the last one without signal


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
    recipe: str | None = None
    distilled: bool = False
    starts_from_image: bool = False
    n_first_timesteps: int | None = None
    """Train only on this many of the first timesteps; None trains on all."""

    component: Literal["unet"] = "unet"
    model_class: str = MODEL_CLASS
    vae_class: str = "AutoencoderKL"
    lora_targets: tuple[str, ...] = LORA_TARGETS
    lora_loader: bool = True
    has_unused_weights: bool = False
    dtype: str = "float16"
    guidance_argument: str = "guidance_scale"
    negative_prompt: str = ""
    call_settings: "Mapping[str, Any]" = field(default_factory=dict)

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
    def image_multiple(self) -> int:
        """U-Nets generate whatever the VAE can decode."""
        return self.vae_factor

    def noise(self, density: "Density | None" = None, shift: float | None = None) -> "Diffusion":
        refuse_flow_settings(self.settings, density, shift)
        return self._noise

    @cached_property
    def _noise(self) -> "Diffusion":
        from ..noise import Diffusion

        settings = self.settings.parts["scheduler"]
        n = settings["num_train_timesteps"]
        timesteps = tuple(range(min(self.n_first_timesteps or n, n)))
        if self.distilled:
            timesteps = tuple(n * (k + 1) // TURBO_STEPS - 1 for k in range(TURBO_STEPS))
        return Diffusion.of(settings, timesteps, zero_snr=self.distilled)

    def latents(self, vae: Any, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        return scaled_latents(vae, pixels)

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        encoders = [self.settings.parts[part] for part in self.text_encoders]
        shapes: dict[str, tuple[int, ...]] = {
            "prompt_embeds": (encoders[0]["max_position_embeddings"], self._unet["cross_attention_dim"]),
            "pooled_prompt_embeds": (encoders[-1]["projection_dim"],),
        }
        return {name: shapes[name] for name in self.prompt_tensors}

    def call_arguments(self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]") -> dict[str, Any]:
        return prompt | {f"negative_{name}": tensor for name, tensor in negative.items()}

    def checked(self) -> "UNetFamily":
        """See Family. Each part is made from its settings without weights, and they are completed with its class's defaults."""
        model = self.settings.model
        refuse_unnamed(self.settings)
        classes = {"unet": self.model_class, "vae": self.vae_class, "scheduler": "DDPMScheduler"}
        parts = complete_parts(self.settings, classes)
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
        refuse_others(
            model,
            {
                "sample_size": (unet["sample_size"], range(1, LARGEST + 1)),
                "num_train_timesteps": (parts["scheduler"]["num_train_timesteps"], range(4, LARGEST + 1)),
                "prediction_type": (parts["scheduler"]["prediction_type"], PREDICTIONS),
                "in_channels of the U-Net": (unet["in_channels"], (parts["vae"]["latent_channels"],)),
            },
        )
        refuse_bad_scales(model, parts["vae"])
        return replace(self, settings=replace(self.settings, parts=parts))


def is_distilled(settings: PipelineSettings) -> bool:
    """True for SD-turbo and SDXL-turbo: models distilled to a few steps, which sample from the last timestep on."""
    scheduler = settings.parts.get("scheduler", {})
    return (
        scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type") != "v_prediction"
        and str(scheduler.get("_class_name")).startswith("Euler")
    )
