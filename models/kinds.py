"""Which kind of model a pipeline holds, read from its settings; nothing is loaded and a name decides nothing."""

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UsageError
from .config_files import INDEX, config_folder, read_settings
from .resolve import Model

SD, XL, REFINER = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"


@dataclass(frozen=True)
class Kind:
    name: str
    """sd, sdxl, sdxl-refiner, turbo, or the pipeline's class."""
    pipeline_class: str
    latent_channels: int | None
    """None where the settings do not tell; so are the others."""
    side: int | None
    """Of the image in pixels that the model was made for."""
    text_encoders: tuple[str, ...]
    """Class and width of each."""


def kind_of(model: Model) -> Kind:
    """
    Raises:
        UsageError: where it draws no image from a prompt alone.
        PrefloopError: where its settings cannot be read or fetched.
    """
    folder = config_folder(model.root)
    index = read_settings(folder / INDEX)
    pipeline = str(index.get("_class_name"))
    component = "unet" if "unet" in index else "transformer"
    denoiser, vae = (read_settings(folder / part / "config.json") for part in (component, "vae"))
    name = _name(pipeline, index, folder)
    if name == "sdxl-refiner":
        raise UsageError(f"{model.name} is a refiner, which begins with an image; draw with its base model")
    blocks, latents = vae.get("block_out_channels"), denoiser.get("sample_size")
    return Kind(
        name=name,
        pipeline_class=pipeline,
        latent_channels=vae.get("latent_channels", denoiser.get("in_channels")),
        side=latents * 2 ** (len(blocks) - 1) if isinstance(blocks, list) and isinstance(latents, int) else None,
        text_encoders=tuple(
            f"{value[1]} of width {_width(folder / part / 'config.json')}"
            for part, value in sorted(index.items())
            if part.startswith("text_encoder") and isinstance(value, list) and value[1] is not None
        ),
    )


def _name(pipeline: str, index: dict, folder: Path) -> str:
    scheduler = read_settings(folder / "scheduler" / "scheduler_config.json")
    stepping = str(scheduler.get("_class_name"))
    # models distilled to a few steps sample from the last timestep on: SDXL-turbo ancestrally, SD-turbo plainly
    last_first = scheduler.get("timestep_spacing") == "trailing" and scheduler.get("prediction_type") != "v_prediction"
    if pipeline == REFINER and (index.get("text_encoder") or [None, None])[1] is None:
        return "sdxl-refiner"
    if pipeline in (SD, XL) and last_first and stepping.startswith("Euler"):
        return "turbo"
    return {SD: "sd", XL: "sdxl"}.get(pipeline, pipeline)


def _width(path: Path) -> object:
    settings = read_settings(path)
    return settings.get("hidden_size", settings.get("d_model", "unknown"))
