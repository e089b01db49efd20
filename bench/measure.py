"""Measure the seconds, operations and bytes of a step by running it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.cost.flop_counter import CostCounter


class Clock:
    """Process time on a CPU, independent of other load; on a GPU the time of its stream, including idle time."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def mark(self) -> Any:
        """The current time, without waiting for the GPU."""
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
    """Seconds of a step by its parts; other time is not counted."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self._clock.mark()
        yield
        self._marks.append((name, start, self._clock.mark()))

    def pop(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        seconds: dict[str, float] = defaultdict(float)
        for name, start, end in self._marks:
            seconds[name] += self._clock.seconds(start, end)
        self._marks.clear()
        return dict(seconds)


@dataclass(frozen=True)
class Cost:
    flops: int
    """2 per multiply-add."""
    peak_bytes: int
    """Tensors that are kept between steps, plus the most that are alive at once during a step."""


def cost_of(step: Callable[[], object], kept: list[Tensor]) -> Cost:
    """Run a step and count its operations and memory.

    Args:
        kept: tensors in memory between steps: weights, optimizer state.
    """
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    with _StepMeter({}) as meter:
        step()
    return Cost(meter.flops, sum(storages.values()) + meter.peak_bytes)


def tensors_of(optimizer: Any, *modules: nn.Module) -> list[Tensor]:
    """The optimizer's state and all weights and buffers."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    for module in modules:
        tensors += [*module.parameters(), *module.buffers()]
    return tensors


def matmul_rate(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Operations per second of a large matrix product, the denominator of a share."""
    n = 8192 if device.type == "cuda" else 1536
    # not zeros, which a GPU multiplies faster
    matrix = torch.randn((n, n), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    times = []
    for _ in range(4):
        start = clock.mark()
        torch.mm(matrix, matrix)
        times.append(clock.seconds(start, clock.mark()))
    return 2 * n**3 / min(times)


class _StepMeter(CostCounter):
    """Counts tensors that have data: every operation is executed."""

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)
