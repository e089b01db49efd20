"""Memory of a run whose model is split over several processes."""

from collections.abc import Mapping

from ...core.text import size
from .cost_model import Phase

PROCESSES = (2, 4, 8)
_SPLIT = ("weights", "gradients", "optimizer", "EMA")


def split_bytes(memory: Mapping[Phase, Mapping[str, int]]) -> dict[int, int]:
    """Number of processes → bytes on each of them in the phase that takes most, without the blocks that are gathered to run.

    Args:
        memory: of one process that holds everything, by phase and purpose.
    """
    return {
        n: max(
            sum(-(-n_bytes // n) if purpose in _SPLIT else n_bytes for purpose, n_bytes in parts.items())
            for parts in memory.values()
        )
        for n in PROCESSES
    }


def split_text(by_processes: Mapping[int, int]) -> str:
    """One line for the terminal."""
    sizes = ", ".join(f"{n} processes {size(n_bytes)}" for n, n_bytes in by_processes.items())
    return f"fsdp      the memory above is for one process; per device with {sizes}, and the blocks in use"
