"""Several processes that train together: where they run, and what they do as one."""

import os
from collections.abc import Callable

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from ..core.errors import PrefloopError

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of mpirun


def on_cpu(asked: bool) -> bool:
    """Whether to train on the CPU; several processes without a GPU find each other only where accelerate is told so."""
    several = any(os.environ.get(name, "").strip() not in ("", "1") for name in _SIZES)
    return asked or (several and not torch.accelerator.is_available())


def at_once(accelerator: Accelerator, do: Callable[[], object]) -> None:
    """Have the main process do something; where it fails all of them end, and none waits for the others."""
    failed: list[PrefloopError | None] = [None]
    if accelerator.is_main_process:
        try:
            do()
        except PrefloopError as error:
            failed = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(failed)
    if failed[0] is not None:
        raise failed[0]


def is_main() -> bool:
    """Whether this is the process that speaks for all of them."""
    return PartialState().is_main_process
