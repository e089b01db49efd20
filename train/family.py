"""Which kind of model a pipeline holds, read from its own configs, and what training it needs of that."""

from dataclasses import dataclass
from typing import Any, Literal

from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel

from ..store.errors import UsageError
from ..store.loading import named_errors
from ..store.model import Model
from ..store.model_files import config_folder

Kind = Literal["sd", "sdxl", "sdxl-refiner", "sdxl-turbo"]
TURBO_TIMESTEPS = (249, 499, 749, 999)  # where SDXL-turbo was distilled to start
REFINER_TIMESTEPS = 200  # the refiner was trained below this one alone
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
        UsageError: where it is none that can be trained here.
        PrefloopError: where its configs cannot be loaded.
    """
    base = model.root
    config_folder(base)
    here = base.loading()
    with named_errors("model", base.source, base.name):
        index: Any = DiffusionPipeline.load_config(base.source, **here)
        if "unet" not in index:
            raise UsageError(f"train knows pipelines with a U-Net; {base.name} is a {index['_class_name']}")
        unet: Any = UNet2DConditionModel.load_config(base.source, subfolder="unet", **here)
        vae: Any = AutoencoderKL.load_config(base.source, subfolder="vae", **here)
        scheduler: Any = DDPMScheduler.load_config(base.source, subfolder="scheduler", **here)
        name = index["_class_name"]
        n_timesteps = scheduler.get("num_train_timesteps", 1000)
        kind = _kind(base.name, name, index, unet, scheduler)
        every: dict[Kind, tuple[int, ...]] = {
            "sdxl-refiner": tuple(range(min(REFINER_TIMESTEPS, n_timesteps))),
            "sdxl-turbo": tuple(n_timesteps * (k + 1) // 4 - 1 for k in range(4)),
        }
        return Family(
            kind=kind,
            pipeline_class=name,
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            timesteps=every.get(kind, tuple(range(n_timesteps))),
            zero_terminal_snr=kind == "sdxl-turbo" or bool(scheduler.get("rescale_betas_zero_snr")),
            resolution=unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
            unet=dict(unet),
            vae=dict(vae),
        )


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
