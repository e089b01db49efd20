"""Seconds, operations and bytes of a step that is really taken."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..train.cost.flop_counter import CostCounter


class Clock:
    """Process time on a CPU, whatever else the machine does; on a GPU the time of its stream, idle moments included."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def mark(self) -> Any:
        """Now; nothing waits for the GPU."""
        if not self._on_gpu:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        if not self._on_gpu:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


class Parts:
    """Seconds of a step by its parts; time outside of any is nobody's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self._clock.mark()
        yield
        self._marks.append((name, start, self._clock.mark()))

    def taken(self) -> dict[str, float]:
        """Those since the last call."""
        found: dict[str, float] = defaultdict(float)
        for name, start, end in self._marks:
            found[name] += self._clock.seconds(start, end)
        self._marks.clear()
        return dict(found)


@dataclass(frozen=True)
class Cost:
    flops: int
    """2 for a multiplication with its addition."""
    peak_bytes: int
    """Of tensors: those that are kept between steps, and those alive at once in a step, at most."""


def cost_of(step: Callable[[], object], kept: list[Tensor]) -> Cost:
    """Take a step and count it.

    Args:
        kept: what is in memory between steps: weights, optimizer state.
    """
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    with _StepMeter({}) as meter:
        step()
    return Cost(meter.flops, sum(storages.values()) + meter.peak_bytes)


def tensors_of(optimizer: Any, *modules: nn.Module) -> list[Tensor]:
    found = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    for module in modules:
        found += [*module.parameters(), *module.buffers()]
    return found


def matmul_rate(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Operations a second of a large matrix product: what a share is a share of."""
    n = 8192 if device.type == "cuda" else 1536
    # not zeros: those a GPU multiplies more quickly
    matrix = torch.randn((n, n), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    times = []
    for _ in range(4):
        start = clock.mark()
        torch.mm(matrix, matrix)
        times.append(clock.seconds(start, clock.mark()))
    return 2 * n**3 / min(times)


class _StepMeter(CostCounter):
    """Of tensors that have data: every operation is carried out."""

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)
