"""The device that models run on. torch is imported only when needed."""

import sys
from pathlib import Path

from .errors import UsageError

DEVICES = ("cuda", "mps", "cpu")
"""What --device is usually set to; torch knows more, such as cuda:1."""
_DEVICE_FILES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
"""What drivers put into /dev: NVIDIA's, those of Jetson and WSL, and AMD's."""


def best_device(requested: str | None = None) -> str:
    """The requested device, or else the best available.

    Raises:
        UsageError: if the requested device is not available.
    """
    import torch

    if requested is not None:
        try:
            torch.empty(0, device=requested)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"the device {requested!r} is not available; leave out --device to use the best one that is"
            ) from error
        return requested
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def may_have_cuda() -> bool:
    """Whether this machine has a driver that torch's "cuda" could use. Takes no time, unlike importing torch to ask it."""
    if sys.platform != "linux":
        return sys.platform != "darwin"
    return any(path for pattern in _DEVICE_FILES for path in Path("/dev").glob(pattern))
