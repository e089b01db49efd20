"""The precision a scorer's model runs in."""

from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def torch_dtype(name: str) -> Any:
    """The torch dtype of a name in DTYPES."""
    import torch

    return getattr(torch, name)
