"""What flow-matching transformers have in common. A family overrides what is its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from ...core.errors import UsageError
from ..density import DENSITIES, Density
from .checks import LARGEST, complete_parts, refuse_bad_scales, refuse_others, refuse_unnamed, scaled_latents
from .settings import PipelineSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..noise import Noise


@dataclass(frozen=True, kw_only=True)
class TransformerFamily:
    """A Family whose component is a transformer of diffusers, trained by rectified flow and saved by an AutoencoderKL.

    Its settings are complete once `checked`.
    """

    name: str
    settings: PipelineSettings
    usual: tuple[int, float]
    text_encoders: tuple[str, ...]
    needs: tuple[str, ...] = ("text_encoder",)
    """Text encoders that cannot be left out."""
    recipe: str | None = None
    distilled: bool = False
    shift: float = 1.0
    """Of sigma in training; that of drawing is the scheduler's."""
    call_settings: Mapping[str, Any] = field(default_factory=dict)

    model_class: str = ""
    """Of every family its own, as are the LoRA targets."""
    lora_targets: tuple[str, ...] = ()
    prompt_tensors: tuple[str, ...] = ("prompt_embeds",)
    component: Literal["transformer"] = "transformer"
    vae_class: str = "AutoencoderKL"
    scheduler_class: str = "FlowMatchEulerDiscreteScheduler"
    """Class whose settings are completed; the pipeline's own may be another."""
    lora_loader: bool = True
    has_unused_weights: bool = False
    dtype: str = "bfloat16"
    starts_from_image: bool = False
    full_optimizer: Literal["adamw", "adafactor"] = "adamw"
    guidance_argument: str = "guidance_scale"
    negative_prompt: str = ""

    @property
    def pipeline_class(self) -> str:
        return self.settings.pipeline_class

    @property
    def _transformer(self) -> dict[str, Any]:
        return self.settings.parts["transformer"]

    @property
    def _vae(self) -> dict[str, Any]:
        return self.settings.parts["vae"]

    @property
    def resolution(self) -> int:
        return self._transformer["sample_size"] * self.vae_factor

    @property
    def latent_channels(self) -> int:
        return self._vae["latent_channels"]

    @property
    def vae_factor(self) -> int:
        return 2 ** (len(self._vae["block_out_channels"]) - 1)

    @property
    def image_multiple(self) -> int:
        """So that the latents can be cut into patches of 2 x 2, or of the transformer's own size."""
        return self.vae_factor * max(self._transformer.get("patch_size") or 1, 1)

    @property
    def sides_multiple(self) -> int:
        return self.image_multiple

    def noise(self, density: Density | None = None, shift: float | None = None) -> "Noise":
        from ..noise import RectifiedFlow

        return RectifiedFlow(density or DENSITIES[0], self.shift if shift is None else shift)

    def latents(self, vae: Any, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        return scaled_latents(vae, pixels)

    def conditions(
        self, prompts: "dict[str, Tensor]", _crop_coordinates: "Tensor", _size: tuple[int, int]
    ) -> "dict[str, Tensor]":
        return prompts

    def call_arguments(
        self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]"
    ) -> "Mapping[str, Tensor | list[Tensor]]":
        return prompt | {f"negative_{name}": tensor for name, tensor in negative.items()}

    def checked(self) -> Self:
        """See Family. Each part is made from its settings without weights, and they are completed with its class's defaults."""
        refuse_unnamed(self.settings)
        classes = {
            "transformer": self.model_class,
            "vae": self.vae_class,
            "scheduler": self.scheduler_class,
        }
        for part in self.needs:
            if part not in self.settings.text_encoders:
                raise UsageError(f"{self.settings.model} cannot be trained: it was saved without its {part}")
        parts = complete_parts(self.settings, classes)
        checked = replace(self, settings=replace(self.settings, parts=parts))
        checked.refuse_unusable()
        return checked

    def refuse_unusable(self) -> None:
        """
        Raises:
            IntegrityError: if a part can be made but not used.
        """
        transformer = self._transformer
        refuse_others(
            self.settings.model,
            {
                "sample_size": (transformer["sample_size"], range(1, LARGEST + 1)),
                "in_channels of the transformer": (transformer["in_channels"], (self._vae["latent_channels"],)),
            },
        )
        refuse_bad_scales(self.settings.model, self._vae)
