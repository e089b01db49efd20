"""Training in several processes: how they are started, and what they must share."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from ..core.errors import UsageError
from ..core.files import write_atomic
from .ranks import Ranks

# torchrun's and mpirun's
_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # in the order in which accelerate asks
VISIBLE_WITHIN = 70.0  # seconds; clients of a network file system may keep what they know of a folder for a minute
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def on_cpu(cpu: bool) -> bool:
    """True if asked, and for several processes without a GPU: accelerate connects those only if it is told to use the CPU."""
    import torch

    return cpu or (several_processes() and not torch.accelerator.is_available())


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return any(os.environ.get(name, "").strip() not in ("", "1") for name in _WORLD_SIZES)


def follows_main() -> bool:
    """Whether this is one of several processes and not the main one, as the environment says before torch is loaded."""
    ranks = [rank for name in _RANKS if (rank := os.environ.get(name, "").strip()).isdigit()]
    return several_processes() and bool(ranks) and int(ranks[0]) > 0


def is_main() -> bool:
    """Whether this is the main process, which prints for all of them."""
    from accelerate import PartialState

    return PartialState().is_main_process


def refuse_sharding() -> None:
    """
    Raises:
        UsageError: if accelerate was configured to split the model over the processes.
    """
    for variable, name in _SHARDED.items():
        if os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on"):
            raise UsageError(
                f"accelerate is configured for {name}, and train splits a model by its own option; choose multi-GPU without "
                "it in `accelerate config`, or use torchrun, and give --fsdp if the model does not fit on one GPU"
            )


def refuse_unshared(folder: Path, what: str, ranks: Ranks, wait: float = VISIBLE_WITHIN) -> None:
    """Make sure that every process sees the same folder: the main process writes a file for a moment, all look for it.

    Args:
        what: the folder in words, for the message.
        wait: seconds until the file must be visible.

    Raises:
        UsageError: in all processes, if one does not see it.
    """
    if ranks.world == 1:
        return
    mark = folder / f".shared-{ranks.from_main(uuid4().hex)}"
    try:
        ranks.on_main(lambda: write_atomic(mark, b"", make_parent=True))
        blind = ranks.gather(None if visible(mark, wait) else socket.gethostname())
    finally:
        if ranks.is_main:
            with suppress(OSError):
                mark.unlink()
    hosts = {rank: host for rank, host in enumerate(blind) if host is not None}

    def refuse() -> None:
        for rank, host in hosts.items():
            raise UsageError(
                f"{what} {folder} of process 0 is not the one that process {rank} on {host} sees; "
                "put it on a file system that all nodes share, under the same path"
            )

    ranks.together(refuse)


def visible(path: Path, wait: float = VISIBLE_WITHIN) -> bool:
    """Whether a file that another process has written appears within `wait` seconds."""
    deadline = time.monotonic() + wait
    while not path.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True
