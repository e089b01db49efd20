"""What a family knows: every fact about one kind of model that generating, training and exporting need."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ..density import Density
    from ..noise import Noise
    from .settings import PipelineSettings


class FamilyFile(Protocol):
    """A module of this folder."""

    @property
    def TITLE(self) -> str:
        """For people."""
        ...

    @property
    def PIPELINES(self) -> tuple[str, ...]:
        """Classes of diffusers whose models belong to the family."""
        ...

    def family(self, settings: "PipelineSettings") -> "Family":
        """The family of a pipeline of one of these classes, from unchecked settings."""
        ...


class Family(Protocol):
    """One kind of model. B is the number of images; latents are (B, C, H / vae_factor, W / vae_factor)."""

    @property
    def name(self) -> str:
        """As in prefloop.json."""
        ...

    @property
    def pipeline_class(self) -> str:
        """Class of diffusers that generates with it."""
        ...

    @property
    def lora_loader(self) -> bool:
        """Whether that class saves and loads LoRAs; if not, they are in peft's layout."""
        ...

    @property
    def component(self) -> Literal["unet", "transformer"]:
        """The part that is trained, and the subfolder it is in."""
        ...

    @property
    def model_class(self) -> str:
        """The component's class in diffusers."""
        ...

    @property
    def vae_class(self) -> str:
        """The VAE's class in diffusers."""
        ...

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Endings of the names of the layers that a LoRA is put on."""
        ...

    @property
    def has_unused_weights(self) -> bool:
        """True if the prediction does not depend on some weights: they get no gradient, which DDP must be told."""
        ...

    @property
    def dtype(self) -> str:
        """Data type of torch that `auto` means on a GPU."""
        ...

    @property
    def usual(self) -> tuple[int, float]:
        """Number of steps and guidance scale that images are usually generated with."""
        ...

    @property
    def recipe(self) -> str | None:
        """The recipe of `train` with the learning rate, beta and so on that a LoRA of it begins with; None if there is none."""
        ...

    @property
    def distilled(self) -> bool:
        """True if it generates in a few steps and without guidance."""
        ...

    @property
    def starts_from_image(self) -> bool:
        """True if it generates nothing from a prompt alone."""
        ...

    @property
    def full_optimizer(self) -> Literal["adamw", "adafactor"]:
        """Optimizer that `auto` means if every weight is trained."""
        ...

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Parts of the pipeline that encode prompts."""
        ...

    @property
    def prompt_tensors(self) -> tuple[str, ...]:
        """Names of the tensors that `encode` returns, as the pipeline's arguments are called."""
        ...

    @property
    def settings(self) -> "PipelineSettings": ...

    @property
    def resolution(self) -> int:
        """Side in pixels that the model was made for."""
        ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def vae_factor(self) -> int:
        """Pixels per latent value, along one side."""
        ...

    @property
    def sides_multiple(self) -> int:
        """Sides of training images are multiples of this many pixels."""
        ...

    @property
    def image_multiple(self) -> int:
        """Sides of generated images are multiples of this many pixels."""
        ...

    @property
    def guidance_argument(self) -> str:
        """The argument of the pipeline's `__call__` that is the scale of classifier-free guidance."""
        ...

    @property
    def negative_prompt(self) -> str:
        """What guidance starts from if no negative prompt is given, and what a dropped prompt becomes in training.

        Unless it is empty, it is given to the pipeline, which has no guidance without.
        """
        ...

    @property
    def call_settings(self) -> Mapping[str, Any]:
        """More arguments of the pipeline's `__call__`, the same for every image."""
        ...

    def noise(self, density: "Density | None" = None, shift: float | None = None) -> "Noise":
        """How images are noised in training, and which timesteps are trained on.

        Args:
            density: of a flow-matching model's sigma; None is the family's own.
            shift: likewise.

        Raises:
            UsageError: if the family has no such setting.
        """
        ...

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of `prompt_tensors` for one prompt; of ragged ones, the largest. Needs checked settings."""
        ...

    def checked(self) -> "Family":
        """The family with complete settings, if a model can be made of them and trained here.

        Raises:
            UsageError: if it cannot be trained here.
            IntegrityError: if its settings do not make a usable model.
        """
        ...

    def encode(self, pipeline: Any, prompts: list[str], /) -> "Mapping[str, Tensor | list[Tensor]]":
        """What the text encoders make of N prompts: `prompt_tensors`, each (N, ...), or a list of N (tokens, ...) if ragged.

        Args:
            pipeline: with text encoders and tokenizers; other parts may be missing.
        """
        ...

    def latents(self, vae: Any, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        """Mean and standard deviation of the latents, in the model's own scale.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
        """
        ...

    def conditions(
        self, prompts: "dict[str, Tensor]", crop_coordinates: "Tensor", size: tuple[int, int], /
    ) -> "dict[str, Tensor]":
        """Everything that `predict` needs beside latents and timesteps; each (B, ...).

        Args:
            prompts: what `encode` returned, a row for each image. A ragged tensor is padded with zeros to the longest row, and
                has a mask beside it, NAME_mask, (B, tokens), which is True for the prompt's own tokens.
            crop_coordinates: (B, 4): the image's original height and width, top and left of the crop.
            size: height and width that are trained on, in pixels.
        """
        ...

    def predict(self, model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]", /) -> "Tensor":
        """The model's prediction, in the latents' shape.

        Args:
            model: the component, perhaps wrapped by accelerate.
            timesteps: (B,).
        """
        ...

    def call_arguments(
        self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]"
    ) -> "Mapping[str, Tensor | list[Tensor]]":
        """How encoded prompts go into the pipeline's own `__call__`; ragged ones as lists, if it takes lists."""
        ...
