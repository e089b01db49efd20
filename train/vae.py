"""The encoder of the images that are trained on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.errors import NumericalError
from .config import VaeDtype


class VaeEncoder:
    """A VAE that is loaded when it first encodes, and on the device only while it does: training needs the memory.

    Args:
        load: the VAE, frozen, in float32 on the CPU.
        latents: a family's, from VAE and pixels to mean and standard deviation.
        dtype: what it computes in.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        latents: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
        device: torch.device,
        dtype: VaeDtype = "float32",
    ) -> None:
        self._load, self._latents, self._device, self._dtype = load, latents, device, dtype
        self._vae: Any = None
        self._on_device = False

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents of pixels (N, 3, H, W), each (N, C, h, w)."""
        if self._vae is None:
            self._vae = self._load()
            if self._dtype != "float32":
                self._vae.to(getattr(torch, self._dtype))
        if not self._on_device:
            self._vae.to(self._device)
            self._on_device = True
        return self._latents(self._vae, pixels)

    def refuse_not_finite(self, mean: Tensor, std: Tensor) -> None:
        """
        Raises:
            NumericalError: if the latents are not finite.
        """
        if mean.isfinite().all() and std.isfinite().all():
            return
        if self._dtype == "float16":
            raise NumericalError(
                "the VAE overflows in float16: its latents are not finite; give --vae-dtype bfloat16 or float32, or name one "
                "that was made for float16 with --vae, such as madebyollin's fp16-fix for SDXL"
            )
        raise NumericalError(
            f"the VAE's latents are not finite in {self._dtype}; its weights may be damaged: name another with --vae"
        )

    def rest(self) -> None:
        """Leave the device's memory to training until more is encoded."""
        if self._on_device and self._device.type != "cpu":
            self._vae.to("cpu")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        self._on_device = False

    def release(self) -> None:
        """Leave all memory."""
        self._vae, self._on_device = None, False
