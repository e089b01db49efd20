"""Decode latents: in a data type of the VAE's own, and when memory is short fewer images at once, from the latents that are there."""

import sys
from typing import Any

import torch

from ..core.errors import NumericalError, PrefloopError, UsageError


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

    def __init__(self, vae: Any, dtype: torch.dtype | None = None) -> None:
        """
        Args:
            dtype: what the VAE runs in, whatever the pipeline does; what it decodes is then float32. None leaves it to the
                pipeline.
        """
        self._vae, self._decode, self.dtype = vae, vae.decode, dtype
        if dtype is not None:
            vae.to(dtype)
        self.max_images: int | None = None
        """Images at once; None until memory has run out."""

    def __call__(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What `decode` gives for latents (B, …).

        Raises:
            PrefloopError: if memory runs out for a single image.
            NumericalError: if the VAE overflows in float16, or if no latents are finite.
        """
        _refuse_black(latents)
        if self.dtype is not None:
            self._vae.to(self.dtype)  # SDXL's pipeline casts one in float16 to float32 before it decodes
            latents = latents.to(self.dtype)
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
                        "out of memory when the VAE decodes a single image; give a smaller --resolution, or --vae-dtype bfloat16"
                    ) from error
            self.max_images = n_images // 2
            print(f"out of memory in the VAE; decoding {self.max_images} at a time", file=sys.stderr)
            free_memory()
        images = [_images(output) for output in outputs]
        _refuse_overflow(latents, images)
        if self.dtype is None and len(outputs) == 1:
            return outputs[0]
        joined = torch.cat(images)
        return _like(outputs[0], joined if self.dtype is None else joined.float())


def decode_sparingly(pipeline: Any, dtype: torch.dtype | None = None) -> None:
    """Let this pipeline's VAE, if it has one that decodes, use less memory when it runs out.

    Args:
        dtype: as for `SparingDecoder`.

    Raises:
        UsageError: if a dtype is given and the pipeline has none.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is not None and callable(getattr(vae, "decode", None)):
        vae.decode = SparingDecoder(vae, dtype)  # on this object alone: every pipeline decodes by its VAE's decode
    elif dtype is not None:
        raise UsageError(f"a {type(pipeline).__name__} has no VAE that decodes; leave --vae-dtype out")


def _of_rows(kwargs: dict[str, Any], rows: slice, n: int) -> dict[str, Any]:
    """The arguments for some of the images: of a list of n generators, those of the rows."""
    generators = kwargs.get("generator")
    return kwargs | {"generator": generators[rows]} if isinstance(generators, list) and len(generators) == n else kwargs


def _images(output: Any) -> torch.Tensor:
    """The decoded images in what a VAE's `decode` gives: (B, …)."""
    return output if isinstance(output, torch.Tensor) else output[0] if isinstance(output, tuple) else output.sample


def _like(output: Any, images: torch.Tensor) -> Any:
    """Images in the form of such an output."""
    if isinstance(output, torch.Tensor):
        return images
    return (images,) if isinstance(output, tuple) else type(output)(sample=images)


def _refuse_black(latents: torch.Tensor) -> None:
    """Images of latents that are not finite are black. If those of a whole batch are, so will be the next ones; else a line says
    how many.

    Raises:
        NumericalError: if none of the latents (B, …) are finite.
    """
    n_black = int((~latents.isfinite().flatten(1).all(1)).sum())
    if not n_black:
        return
    cure = "in float16 a model may overflow, and --dtype bfloat16 or float32 helps; otherwise its weights or settings are at fault"
    if n_black == len(latents):
        raise NumericalError(f"the model's latents are not finite, and the images would be black; {cure}")
    print(
        f"{n_black} of {len(latents)} images are black, because their latents are not finite; {cure}", file=sys.stderr
    )


def _refuse_overflow(latents: torch.Tensor, images: list[torch.Tensor]) -> None:
    """
    Raises:
        NumericalError: if finite latents in float16 became images that are not finite, and would be stored as black ones.
    """
    if latents.dtype != torch.float16 or all(bool(image.isfinite().all()) for image in images):
        return
    if latents.isfinite().all():
        raise NumericalError(
            "the VAE overflows in float16, and the images would be black; give --vae-dtype bfloat16 or float32"
        )
