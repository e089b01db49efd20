"""Checks of the machine before anything is loaded, created or deleted."""

import importlib.util

from ..core.errors import PrefloopError, UsageError
from .config import TrainConfig


def refuse_impossible(config: TrainConfig) -> None:
    """Refuse settings that cannot work on this machine.

    Raises:
        UsageError: if the settings need a GPU and the run would be on the CPU.
        PrefloopError: if a package is not installed, no user is logged in to the hub, or the hub cannot be reached.
    """
    if config.mixed_precision == "fp16" and _on_cpu(config):
        raise UsageError(
            "mixed-precision fp16 needs a GPU and this run is on the CPU; give --mixed-precision bf16 or no"
        )
    if config.optimizer == "adamw8bit" and not _installed("bitsandbytes"):
        raise PrefloopError("optimizer adamw8bit needs bitsandbytes: pip install 'prefloop[bitsandbytes]'")
    if config.report_to is not None:
        _refuse_missing_tracker(config.report_to)
    if config.push_to_hub is not None:
        from .export.hub import refuse_unpushable

        refuse_unpushable(config.push_to_hub, config.output_dir)


def _on_cpu(config: TrainConfig) -> bool:
    import torch
    from accelerate.utils import parse_flag_from_env

    return config.cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def _refuse_missing_tracker(name: str) -> None:
    from accelerate.utils import LoggerType

    if not _installed(name) or name not in LoggerType.list():
        raise PrefloopError(
            f"{name} is not installed, or accelerate is too old to know it: pip install 'prefloop[{name}]'"
        )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # raised if sys.modules holds None for the package
        return False
