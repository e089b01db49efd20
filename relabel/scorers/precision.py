"""The precision a scorer's model runs in."""

from typing import Any

from ...core.device import best_device, may_have_cuda

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"
"""The scorer's own default; of those that come with prefloop, what `automatic_dtype` gives."""
_AMPERE = 8
"""Compute capability from which a GPU multiplies in bfloat16."""


def automatic_dtype(device: str | None) -> str:
    """float32, or on CUDA bfloat16, and float16 on a GPU that has no bfloat16. Imports torch only where CUDA may be.

    Args:
        device: as `best_device` takes it; None is the best available.

    Raises:
        UsageError: if the device is a CUDA one that is not available.
    """
    if not _may_be_cuda(device):
        return "float32"
    name = best_device(device)
    if not name.startswith("cuda"):
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.get_device_capability(name)[0] >= _AMPERE else "float16"


def torch_dtype(name: str) -> Any:
    """The torch dtype of a name in DTYPES."""
    import torch

    return getattr(torch, name)


def _may_be_cuda(device: str | None) -> bool:
    return may_have_cuda() if device is None else device.startswith("cuda")
