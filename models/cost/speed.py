"""How fast a device computes: the rate of matrix products, measured."""

import time
from dataclasses import dataclass

import torch

AUTOCAST_DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
SMALLEST = 512
"""Rows of a matrix whose product is timed at least: a small one may take as long as this, if the cores are busy."""
GPU_UTILIZATION = 0.3
"""Fraction of a matrix product's rate. Good code reaches 28 to 31 % of peak on these U-Nets: MLPerf's SD2 on an H200."""
CPU_UTILIZATION = 0.5
"""Fraction of a matrix product's rate. Measured with one thread and a 42M-parameter U-Net at 256 pixels: 0.67 in processor
time, 0.44 in wall-clock time on a busy machine."""


@dataclass(frozen=True)
class DeviceSpeed:
    device: str
    flops_per_second: dict[str, float]
    """Rate of a matrix product, by mixed_precision."""
    utilization: float
    """Fraction of that rate that training and generating reach."""

    def seconds(self, flops: float, precision: str) -> float:
        """
        Args:
            precision: as mixed_precision: no, fp16 or bf16.
        """
        return flops / (self.flops_per_second[precision] * self.utilization)


def measured_speed(device: torch.device) -> DeviceSpeed:
    """Measure the rate of matrix products on this device; takes about half a second."""
    rates = {precision: _matmul_rate(device, dtype or torch.float32) for precision, dtype in AUTOCAST_DTYPES.items()}
    return DeviceSpeed(str(device), rates, CPU_UTILIZATION if device.type == "cpu" else GPU_UTILIZATION)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product that is large enough to be timed; the best of several sizes, as other programs may disturb."""
    generator = torch.Generator(device).manual_seed(0)
    n, seconds, rate = 64, 0.0, 0.0
    while (seconds < 0.02 and n < 8192) or n < SMALLEST:
        n *= 2
        # random values: a GPU multiplies zeros faster
        matrix = torch.randn((n, n), generator=generator, device=device).to(dtype)
        seconds = min(_matmul_seconds(matrix) for _ in range(3))
        rate = max(rate, 2 * n**3 / seconds)
    return rate


def _matmul_seconds(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # waits for the device
    return time.perf_counter() - start
