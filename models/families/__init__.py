"""The families of models that can be trained, one file each; a new one is its file, its line in FAMILIES and its tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import UsageError
from ..model import Model
from . import flux1, flux2, pixart, qwen_image, sana, sd, sd3, sdxl, zimage
from .protocol import Family, FamilyFile
from .settings import PipelineSettings

FAMILIES: tuple[FamilyFile, ...] = (sd, sdxl, sd3, zimage, flux2, flux1, qwen_image, sana, pixart)
PIPELINES = {name: file for file in FAMILIES for name in file.PIPELINES}
"""Class of diffusers → the file of its family."""


@dataclass(frozen=True)
class PipelineTraits:
    """What must be alike in two models whose images are compared; None if the settings do not say."""

    name: str
    """The family's, or the pipeline's class if it belongs to no family."""
    pipeline_class: str
    latent_channels: int | None
    side: int | None
    """Of the image in pixels that the model was made for."""
    text_encoders: tuple[str, ...]
    """Class and width of each."""


def known_family(model: Model) -> Family | None:
    """The family of any pipeline, from unchecked settings; None if it belongs to no family.

    Raises:
        PrefloopError: if the settings cannot be read or fetched.
    """
    file = PIPELINES.get(model.settings.pipeline_class)
    return None if file is None else file.family(model.settings)


def family_of(model: Model) -> Family:
    """The family of a model that can be trained.

    Raises:
        UsageError: if it cannot be trained here.
        IntegrityError: if its settings do not make a usable model.
        PrefloopError: if they cannot be read or fetched.
    """
    return supported_family(model).checked()


def supported_family(model: Model) -> Family:
    """The family of a model that can be loaded part by part, from unchecked settings.

    Raises:
        UsageError: if it belongs to no family.
    """
    family = known_family(model)
    if family is None:
        titles = "; ".join(f"{file.TITLE} ({', '.join(file.PIPELINES)})" for file in FAMILIES)
        raise UsageError(
            f"{model.root.name} is a {model.settings.pipeline_class}, which cannot be trained; supported: {titles}"
        )
    return family


def family_of_class(pipeline_class: str) -> Family:
    """The family of a pipeline about which only the class, one of PIPELINES, is known."""
    return PIPELINES[pipeline_class].family(PipelineSettings(pipeline_class, {"_class_name": pipeline_class}, {}))


def traits_of(model: Model) -> PipelineTraits:
    """
    Raises:
        UsageError: if the model generates no image from a prompt alone.
        PrefloopError: if its settings cannot be read or fetched.
    """
    settings, family = model.settings, known_family(model)
    if family is not None and family.starts_from_image:
        raise UsageError(f"{model.name} is a refiner, which starts from an image; generate with its base model")
    denoiser, vae = settings.parts[settings.component], settings.parts["vae"]
    blocks = vae.get("block_out_channels", vae.get("encoder_block_out_channels"))
    latents = denoiser.get("sample_size")
    widths = {part: settings.parts.get(part, {}) for part in settings.text_encoders}
    return PipelineTraits(
        name=settings.pipeline_class if family is None else family.name,
        pipeline_class=settings.pipeline_class,
        latent_channels=vae.get("latent_channels", vae.get("z_dim", denoiser.get("in_channels"))),
        side=latents * 2 ** (len(blocks) - 1) if isinstance(blocks, list) and isinstance(latents, int) else None,
        text_encoders=tuple(f"{settings.index[part][1]} of width {_width(config)}" for part, config in widths.items()),
    )


def _width(encoder: Mapping[str, Any]) -> Any:
    """Of a text encoder's hidden states; of a vision-language model, older files say it beside those of its part for text."""
    text = encoder.get("text_config")
    nested = text.get("hidden_size") if isinstance(text, dict) else None
    return encoder.get("hidden_size", nested or encoder.get("d_model", "unknown"))
