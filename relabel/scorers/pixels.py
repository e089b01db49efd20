"""Preprocess an image into a model's input: pixels (3, size, size), float32, normalized as for CLIP."""

from typing import TYPE_CHECKING, Any, Literal

from ...store.images import MAX_PIXELS, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def center_cropped(image: "Image", size: int, rounding: Literal["transformers", "torchvision"]) -> Any:
    """Resize the shortest side to `size`, bicubic on the 8-bit image, then crop the center square.

    Args:
        rounding: when an odd number of pixels is cropped, transformers floors the offset and torchvision rounds half to
            even; at 640 x 427 that moves the square by a pixel.
    """
    from PIL.Image import Resampling

    scale = size / min(image.size)
    if max(image.size) * scale * size > MAX_PIXELS:
        raise ImageError(
            "too large",
            f"an image of {image.width} x {image.height} is too narrow to resize its shortest side to {size}",
        )
    width, height = (size if side == min(image.size) else int(size * side / min(image.size)) for side in image.size)
    resized = image.resize((width, height), Resampling.BICUBIC)
    left, top = (
        (side - size) // 2 if rounding == "transformers" else round((side - size) / 2) for side in (width, height)
    )
    return _normalized(_tensor(resized.crop((left, top, left + size, top + size))))


def padded(image: "Image", size: int) -> Any:
    """Resize the longest side to `size`, bicubic on the float image with antialiasing, then pad with black."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    pixels = _tensor(image)
    height, width = pixels.shape[1:]
    scale = size / max(height, width)
    if scale != 1.0:
        new = [max(1, round(height * scale)), max(1, round(width * scale))]
        pixels = tv.resize(pixels, new, interpolation=InterpolationMode.BICUBIC, antialias=True)
    down, right = size - pixels.shape[1], size - pixels.shape[2]
    # padded before normalizing: the border is black, not gray
    return _normalized(tv.pad(pixels, [right // 2, down // 2, right - right // 2, down - down // 2]))


def _tensor(image: "Image") -> Any:
    from torchvision.transforms import functional as tv

    return tv.to_tensor(image)


def _normalized(pixels: Any) -> Any:
    from torchvision.transforms import functional as tv

    return tv.normalize(pixels, MEAN, STD)
