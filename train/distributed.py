"""Training in several processes: the device, and what only the main process does."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.errors import PrefloopError

if TYPE_CHECKING:
    from accelerate import Accelerator

_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's and mpirun's


def on_cpu(cpu: bool) -> bool:
    """True if asked, and for several processes without a GPU: accelerate connects those only if it is told to use the CPU."""
    import torch

    return cpu or (several_processes() and not torch.accelerator.is_available())


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return any(os.environ.get(name, "").strip() not in ("", "1") for name in _WORLD_SIZES)


def on_main_process(accelerator: "Accelerator", action: Callable[[], object]) -> None:
    """Run an action in the main process alone; if it fails, every process raises its error, so that none waits for another."""
    failed: list[PrefloopError | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except PrefloopError as error:
            failed = [error]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(failed)
    if failed[0] is not None:
        raise failed[0]


def is_main() -> bool:
    """Whether this is the main process, which prints for all of them."""
    from accelerate import PartialState

    return PartialState().is_main_process
