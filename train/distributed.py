"""Training in several processes: the device, and what only the main process does."""

import os
from collections.abc import Callable

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from ..core.errors import PrefloopError

_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's and mpirun's


def on_cpu(cpu: bool) -> bool:
    """True if asked, and for several processes without a GPU: accelerate connects those only if it is told to use the CPU."""
    several = any(os.environ.get(name, "").strip() not in ("", "1") for name in _WORLD_SIZES)
    return cpu or (several and not torch.accelerator.is_available())


def on_main_process(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Run an action in the main process alone; if it fails, every process raises its error, so that none waits for another."""
    failed: list[PrefloopError | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except PrefloopError as error:
            failed = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(failed)
    if failed[0] is not None:
        raise failed[0]


def is_main() -> bool:
    """Whether this is the main process, which prints for all of them."""
    return PartialState().is_main_process
