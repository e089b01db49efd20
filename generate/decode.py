"""Decode latents when memory is short: fewer images at once, from the latents that are there."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from ..core.errors import PrefloopError


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Hand cached blocks back, so that a smaller batch is not refused for fragmentation. Call it outside an except block, which
    keeps alive what was allocated."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class SparingDecoder:
    """A VAE's `decode` that, when memory runs out, decodes half as many images at once and remembers the number.

    Unlike `enable_slicing`, which decodes one at a time from the start, it costs nothing while memory lasts. Slices change an
    image by float rounding alone. Tiles would change it visibly, so they are not used: an image depends on its settings, not on
    the memory that was free.
    """

    def __init__(self, vae: Any) -> None:
        self._decode: Callable[..., Any] = vae.decode
        self.max_images: int | None = None
        """Images at once; None until memory has run out."""

    def __call__(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What `decode` gives for latents (B, …).

        Raises:
            PrefloopError: if memory runs out for a single image.
        """
        outputs, start = [], 0
        while start < len(latents):
            n_images = min(self.max_images or len(latents), len(latents) - start)
            rows = slice(start, start + n_images)
            try:
                outputs.append(self._decode(latents[rows], *args, **_of_rows(kwargs, rows, len(latents))))
                start += n_images
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if n_images == 1:
                    raise PrefloopError(
                        "out of memory when the VAE decodes a single image; give a smaller --resolution, or --dtype float16"
                    ) from error
            self.max_images = n_images // 2
            print(f"out of memory in the VAE; decoding {self.max_images} at a time", file=sys.stderr)
            free_memory()
        return outputs[0] if len(outputs) == 1 else _joined(outputs)


def decode_sparingly(pipeline: Any) -> None:
    """Let this pipeline's VAE, if it has one that decodes, use less memory when it runs out."""
    vae = getattr(pipeline, "vae", None)
    if vae is not None and callable(getattr(vae, "decode", None)):
        vae.decode = SparingDecoder(vae)  # on this object alone: every pipeline decodes by its VAE's decode


def _of_rows(kwargs: dict[str, Any], rows: slice, n: int) -> dict[str, Any]:
    """The arguments for some of the images: of a list of n generators, those of the rows."""
    generators = kwargs.get("generator")
    return kwargs | {"generator": generators[rows]} if isinstance(generators, list) and len(generators) == n else kwargs


def _joined(outputs: list[Any]) -> Any:
    join: Callable[[list[torch.Tensor]], torch.Tensor] = torch.cat
    if isinstance(outputs[0], torch.Tensor):
        return join(outputs)
    if isinstance(outputs[0], tuple):
        return (join([output[0] for output in outputs]),)
    return type(outputs[0])(sample=join([output.sample for output in outputs]))
