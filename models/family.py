"""Which kind of model a pipeline holds, read from its own configs, and what training it needs of that."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel

from ..core.errors import IntegrityError, UsageError
from .config_files import config_folder
from .loading import named_errors
from .model import Model

Kind = Literal["sd", "sdxl", "sdxl-refiner", "sdxl-turbo"]
TURBO_TIMESTEPS = (249, 499, 749, 999)  # where SDXL-turbo was distilled to start
REFINER_TIMESTEPS = 200  # the refiner was trained below this one alone
LARGEST = 4096  # of a latent's side and of timesteps: four times what any known model has
PREDICTIONS = ("epsilon", "v_prediction", "sample")
AESTHETIC_SCORE = 6.0  # what the refiner is told of every image, as its pipeline does


@dataclass(frozen=True)
class Family:
    kind: Kind
    pipeline_class: str
    prediction_type: str
    """epsilon, v_prediction or sample."""
    timesteps: tuple[int, ...]
    """Those that are trained on; drawn evenly."""
    zero_terminal_snr: bool
    resolution: int
    """The side in pixels that the model was made for."""
    unet: dict[str, Any]
    vae: dict[str, Any]

    @property
    def is_xl(self) -> bool:
        return self.kind != "sd"

    @property
    def vae_factor(self) -> int:
        """Pixels to a latent's side."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    @property
    def frame_step(self) -> int:
        """Sides of training frames are multiples of this many pixels, so that the U-Net can halve them."""
        return self.vae_factor * 2 ** (len(self.unet["block_out_channels"]) - 1)

    def time_ids(self, frame: "list[int]", resolution: tuple[int, int]) -> list[float]:
        """What an SDXL U-Net is told of an image: its original size and its crop, as they are, not as they ought to be.

        Args:
            frame: original height and width, top and left of the crop in the scaled image.
            resolution: height and width that are trained on.
        """
        if self.kind == "sdxl-refiner":
            return [*frame, AESTHETIC_SCORE]
        return [*frame, *resolution]


def family_of(model: Model) -> Family:
    """Read from the configs of the pipeline; a name decides nothing.

    Raises:
        UsageError: where it cannot be trained here.
        IntegrityError: where its configs do not make a model.
        PrefloopError: where they cannot be loaded.
    """
    base = model.root
    config_folder(base)
    here = base.loading()
    with named_errors("model", base.source, base.name):
        index: Any = DiffusionPipeline.load_config(base.source, **here)
        name = _known(base.name, index).get("_class_name")
        if "unet" not in index:
            raise UsageError(f"train knows pipelines with a U-Net; {base.name} is a {name}")
        unet: Any = UNet2DConditionModel.load_config(base.source, subfolder="unet", **here)
        vae: Any = AutoencoderKL.load_config(base.source, subfolder="vae", **here)
        scheduler: Any = DDPMScheduler.load_config(base.source, subfolder="scheduler", **here)
    if not isinstance(name, str):
        raise IntegrityError(f"the model {base.name} does not name the class of its pipeline: _class_name is {name!r}")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"):
        if index.get(part) is not None and not _is_class(index[part], optional=part.startswith("text")):
            raise IntegrityError(f"the model {base.name} does not name the class of its {part}: it is {index[part]!r}")
    unet = _made(base.name, "U-Net", UNet2DConditionModel, unet)
    vae = _made(base.name, "VAE", AutoencoderKL, vae)
    noise = _made(base.name, "scheduler", DDPMScheduler, scheduler)
    kind = _kind(base.name, name, index, unet, scheduler)
    _refuse_odd(base.name, unet, vae, noise)
    n_timesteps = noise["num_train_timesteps"]
    every: dict[Kind, tuple[int, ...]] = {
        "sdxl-refiner": tuple(range(min(REFINER_TIMESTEPS, n_timesteps))),
        "sdxl-turbo": tuple(n_timesteps * (k + 1) // 4 - 1 for k in range(4)),
    }
    return Family(
        kind=kind,
        pipeline_class=name,
        prediction_type=noise["prediction_type"],
        timesteps=every.get(kind, tuple(range(n_timesteps))),
        zero_terminal_snr=kind == "sdxl-turbo" or bool(scheduler.get("rescale_betas_zero_snr")),
        resolution=unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
        unet=unet,
        vae=vae,
    )


def _is_class(value: Any, *, optional: bool) -> bool:
    """Whether an entry of the index names a library and a class; an optional part may have none."""
    if not (isinstance(value, list | tuple) and len(value) == 2):
        return False
    return all(isinstance(name, str) for name in value) or (optional and list(value) == [None, None])


def _known(model: str, settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise IntegrityError(f"the settings of the model {model} are a {type(settings).__name__}, not a table of names")
    return settings


def _made(model: str, what: str, kind: Any, settings: Any) -> dict[str, Any]:
    """The settings of a part with its class's defaults, once the class has made it of them, without weights."""
    _known(model, settings)
    try:
        with torch.device("meta" if what != "scheduler" else "cpu"):
            return dict(kind.from_config(settings).config)
    except Exception as error:  # a constructor raises whatever it stumbles over
        raise IntegrityError(
            f"the {what} of the model {model} cannot be made of its settings: {_line(error)}"
        ) from error


def _refuse_odd(model: str, unet: dict[str, Any], vae: dict[str, Any], noise: dict[str, Any]) -> None:
    """
    Raises:
        IntegrityError: where a part can be made and yet not be used.
    """
    allowed = {
        "sample_size": (unet["sample_size"], range(1, LARGEST + 1)),
        "num_train_timesteps": (noise["num_train_timesteps"], range(4, LARGEST + 1)),
        "prediction_type": (noise["prediction_type"], PREDICTIONS),
        "in_channels of the U-Net": (unet["in_channels"], (vae["latent_channels"],)),
    }
    for name, (value, choices) in allowed.items():
        if type(value) not in (int, str) or value not in choices:
            known = f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else " or ".join(map(str, choices))
            raise IntegrityError(f"the model {model} cannot be used: its {name} is {value!r}, not {known}")
    for name, value in (("scaling_factor", vae["scaling_factor"]), ("shift_factor", vae.get("shift_factor") or 0)):
        if not isinstance(value, int | float) or not math.isfinite(value) or (name == "scaling_factor" and value <= 0):
            raise IntegrityError(f"the model {model} cannot be used: the {name} of its VAE is {value!r}")


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _kind(model: str, name: str, index: dict, unet: dict, scheduler: dict) -> Kind:
    if unet.get("in_channels") != unet.get("out_channels"):
        raise UsageError(
            f"{model} takes {unet['in_channels']} channels and gives {unet['out_channels']}: it paints into a given image, "
            "which train does not know"
        )
    extra = unet.get("addition_embed_type")
    if extra is None and unet.get("class_embed_type") is None and "XL" not in name:
        return "sd"
    if extra != "text_time":
        raise UsageError(f"train knows Stable Diffusion 1, 2 and XL; {model} is a {name} with conditions of its own")
    if (index.get("text_encoder") or [None, None])[1] is None:
        return "sdxl-refiner"
    # distilled models sample from the last timestep on, ancestrally
    distilled = scheduler.get("timestep_spacing") == "trailing" and "Ancestral" in scheduler.get("_class_name", "")
    return "sdxl-turbo" if distilled else "sdxl"


def load_noise(model: Model, family: Family) -> Any:
    """The noise schedule the model was trained on; where its terminal signal-to-noise ratio is zero, by arXiv 2305.08891."""
    root = model.root
    with named_errors("model", root.source, root.name):
        config: Any = DDPMScheduler.load_config(root.source, subfolder="scheduler", **root.loading())
    return DDPMScheduler.from_config(config, rescale_betas_zero_snr=family.zero_terminal_snr)
