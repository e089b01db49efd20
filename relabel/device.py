"""Where a scorer's model runs, and in which precision."""

from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def device_for(wanted: str | None) -> str:
    """The device asked for, else the best there is."""
    import torch

    if wanted is not None:
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def torch_dtype(name: str) -> Any:
    """Of one of DTYPES."""
    import torch

    return getattr(torch, name)
