"""Copy tensors to the device that trains."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy to CUDA does not wait for what the GPU still computes, as `tensor.to(device)` would;
    from pinned memory it also goes on while the CPU does other work."""
    return tensor.to(device, non_blocking=device.type == "cuda")
