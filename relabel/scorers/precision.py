"""The precision a scorer's model runs in."""

from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"
"""The scorer's own default: float32, or what suits a large one on its device."""


def torch_dtype(name: str) -> Any:
    """The torch dtype of a name in DTYPES."""
    import torch

    return getattr(torch, name)
