"""Checks of the machine and the model before anything is loaded, created or deleted."""

import importlib.util
import sys
from pathlib import Path

from ..core.device import best_device
from ..core.errors import PrefloopError, UsageError
from ..models.families import Family
from ..models.lora_file import refuse_other_files
from ..models.model import COMPONENTS
from .compilation import refuse_no_compiler, refuse_uncompilable
from .config import TrainConfig
from .distributed import refuse_sharding
from .sharding_checks import refuse_optimizer


def refuse_impossible(config: TrainConfig) -> None:
    """Refuse settings that cannot work on this machine.

    Raises:
        UsageError: if the settings need a GPU and the run would be on the CPU, or accelerate would split the model.
        PrefloopError: if a package is not installed, no user is logged in to the hub, or the hub cannot be reached.
    """
    refuse_sharding()
    if config.optimizer == "adamw8bit" and not _installed("bitsandbytes"):
        raise PrefloopError("optimizer adamw8bit needs bitsandbytes: pip install 'prefloop[bitsandbytes]'")
    if config.compile:
        refuse_no_compiler(_on_cpu(config))
    if config.quantize != "no" and not _installed("bitsandbytes"):
        raise PrefloopError(f"quantize {config.quantize} needs bitsandbytes: pip install 'prefloop[bitsandbytes]'")
    if config.report_to is not None:
        _refuse_missing_tracker(config.report_to)
    if config.push_to_hub is not None:
        from .export.hub import refuse_unpushable

        refuse_unpushable(config.push_to_hub, config.output_dir)
    if config.device not in (None, "cpu"):
        best_device(config.device)
    if config.mixed_precision == "fp16" and _on_cpu(config):
        raise UsageError(
            "mixed-precision fp16 needs a GPU and this run is on the CPU; give --mixed-precision bf16 or no"
        )


def refuse_unsuitable(config: TrainConfig, family: Family) -> None:
    """Refuse settings that are for another kind of model; warn of those that cost quality.

    Raises:
        UsageError: if a setting cannot be used with the model.
    """
    model, component = family.settings.model, family.component
    if config.init_from is not None and Path(config.init_from).expanduser().is_file():
        refuse_other_files(Path(config.init_from).expanduser())
    refuse_other_kind(config, family)
    if config.compile:
        refuse_uncompilable(family)
    from .data import noise_of  # needs torch
    from .optimizers import optimizer_name  # likewise

    refuse_optimizer(config, optimizer_name(config, family))

    if noise_of(family, config).prediction_type == "flow" and config.min_snr_gamma is not None:
        raise UsageError("min-snr-gamma is for diffusion models; flow matching weighs timesteps by --timestep-density")
    if family.distilled and component == "transformer":
        print(
            f"{model} is distilled to few steps or to work without guidance; training it loses some of that: "
            "train the base model, and use the LoRA on the distilled one",
            file=sys.stderr,
        )
    if config.device not in (None, "cpu"):
        best_device(config.device)
    if config.mixed_precision == "fp16" and family.dtype == "bfloat16":
        print(
            f"{model} was made for bfloat16 and may overflow in fp16; --mixed-precision bf16 is safer", file=sys.stderr
        )


def refuse_other_kind(config: TrainConfig, family: Family) -> None:
    """What the settings of the model alone decide; loads nothing slow.

    Raises:
        UsageError: if a setting is for another kind of model.
    """
    model, component = family.settings.model, family.component
    if config.format in COMPONENTS and config.format != component:
        raise UsageError(f"{model}, a {family.pipeline_class}, has a {component}; give --format {component}")
    if config.kohya_file and component != "unet":
        raise UsageError(
            f"kohya is a format for the LoRAs of U-Nets; {model} has a {component}, whose LoRA diffusers' own format holds"
        )
    if config.sample_steps and family.starts_from_image:
        raise UsageError("sample-steps cannot generate with a refiner, which starts from an image; leave it out")
    if (side := config.resolution) is not None and side % family.image_multiple:
        raise UsageError(
            f"resolution must be a multiple of {family.image_multiple} for a {family.pipeline_class}, got {side}"
        )


def _on_cpu(config: TrainConfig) -> bool:
    import torch
    from accelerate.utils import parse_flag_from_env

    return config.on_cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def _refuse_missing_tracker(name: str) -> None:
    if not _installed(name) or not _knows(name):
        raise PrefloopError(
            f"{name} is not installed, or accelerate is too old to know it: pip install 'prefloop[{name}]'"
        )


def _knows(tracker: str) -> bool:
    from accelerate.utils import LoggerType

    return tracker in LoggerType.list()


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # raised if sys.modules holds None for the package
        return False
