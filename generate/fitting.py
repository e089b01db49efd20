"""How many images a GPU's free memory is estimated to hold while they are generated."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.errors import IntegrityError, UsageError
from ..core.text import size
from ..models.families import Family, family_of
from ..models.model import Model
from .config import GenerateConfig
from .estimate import denoising_pass, is_guided

if TYPE_CHECKING:
    import torch

MOST = 256
"""A batch is what a kill can cost, and what a signal waits for."""
KEPT_FREE = 1 << 30
"""Bytes for the workspaces of convolutions, and for what the allocator cannot use between its blocks."""
FLOAT32 = 4  # bytes, in which passes are counted


def images_that_fit(family: Family, config: GenerateConfig, free: int, dtype: "torch.dtype") -> int:
    """A power of two, so that the same GPU gives the same batches although its free memory varies a little. Counted on the
    model's settings, without a GPU; the VAE is not in it, since it decodes fewer at once if it must.

    Args:
        family: with checked settings.
        config: as `resolve_defaults` returns it.
        free: bytes beside the loaded model.
        dtype: what the model runs in.
    """
    fitting = (free - KEPT_FREE) // bytes_per_image(family, config, dtype)
    return 1 << max(1, min(fitting, MOST)).bit_length() - 1


def bytes_per_image(family: Family, config: GenerateConfig, dtype: "torch.dtype") -> int:
    """Largest number of bytes that one image needs at once while it is denoised; with guidance it is denoised twice."""
    peak = denoising_pass(family, config).peak_bytes * dtype.itemsize // FLOAT32
    return peak * (2 if is_guided(family, config) else 1)


def free_bytes(device: str) -> int:
    """What torch can still allocate on a GPU: free for every process, or held by torch and unused."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def batch_size_of(
    model: Model, config: GenerateConfig, device: str, dtype: "torch.dtype", free: Callable[[str], int] = free_bytes
) -> int:
    """How many images to generate at once with a loaded model: what is set, or what fits.

    Args:
        config: as `resolve_defaults` returns it.
        free: gives the free bytes of the device.
    """
    if not config.auto_batch_size or not device.startswith("cuda"):
        return config.batch_size
    from ..models.cost.components import with_text_defaults

    try:
        family = with_text_defaults(family_of(model))
    except (UsageError, IntegrityError):
        print(f"the memory of {model.name} cannot be counted; generating {config.batch_size} at once", file=sys.stderr)
        return config.batch_size
    room = free(device)
    n_images = images_that_fit(family, config, room, dtype)
    print(f"generating {n_images} at once, estimated from {size(room)} of free memory", file=sys.stderr)
    return n_images
