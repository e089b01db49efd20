"""Content-addressed image files; `load_image` is the only decoder."""

import io
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from ..core.errors import PrefloopError, cannot_write
from ..core.files import sync_folder, write_atomic
from ..core.ids import image_id

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
RUNS_ONLY_FROM = 256 * 256
"""Pixels of an image from which encoding takes so long that its speed matters."""
Z_DEFAULT_STRATEGY, Z_RLE = 0, 3  # of zlib
_FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
Reason = Literal["missing", "unreadable", "format", "animated", "too large", "hash"]


class ImageError(PrefloopError):
    """An image that cannot be used, with the reason in a word."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def load_image(source: Path | bytes, expected: UUID | None = None, max_pixels: int = MAX_PIXELS) -> "Image.Image":
    """Decode an image to 8-bit RGB: upright, alpha composited on white, 16 bits scaled.

    Args:
        source: a PNG, JPEG or WebP file, or its bytes.
        expected: the id the bytes must have.
        max_pixels: width times height above which nothing is decoded.

    Raises:
        ImageError: if the image cannot be used; `reason` says why.
    """
    import numpy as np
    from PIL import Image, ImageOps

    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError("missing", f"{name} cannot be read: {error.strerror}") from error
    if expected is not None and image_id(data) != expected:
        raise ImageError("hash", f"{name} has changed since it was stored: its sha256 is not that of image {expected}")
    try:
        with Image.open(io.BytesIO(data), formats=list(_FORMATS)) as opened:
            if opened.width * opened.height > max_pixels:
                raise ImageError(
                    "too large", f"{name} has {opened.width} x {opened.height} pixels, more than {max_pixels}"
                )
            if getattr(opened, "n_frames", 1) > 1:
                raise ImageError("animated", f"{name} is animated")
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits per channel; convert() would clip at 255
                image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                layered = image.convert("RGBA")
                white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, layered)
            return image.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too large", f"{name} has more than {max_pixels} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("format", f"{name} is not a PNG, JPEG or WebP image") from error
    # Pillow's decoders raise many types: OSError, SyntaxError, struct.error, ValueError …
    except Exception as error:
        raise ImageError("unreadable", f"{name} cannot be decoded: {error}") from error


def format_of(data: bytes) -> str:
    """File extension of an image that `load_image` accepts, from its first bytes."""
    return "png" if data[:1] == b"\x89" else "jpg" if data[:1] == b"\xff" else "webp"


def image_path(folder: Path, image: UUID, extension: str = "png") -> Path:
    return folder / image.hex[:2] / f"{image.hex}.{extension}"


def stored_at(image: UUID, extension: str) -> str:
    """The image's path relative to the store's folder, as in the view `image_files`."""
    return f"images/{image.hex[:2]}/{image.hex}.{extension}"


def png_bytes(image: "Image.Image") -> bytes:
    """A PNG at compression level 1, three times faster than the default and about 1 % larger; of large images only runs are
    searched for repetitions, which takes a third less time and makes photographs 6 % smaller."""
    buffer = io.BytesIO()
    large = image.width * image.height >= RUNS_ONLY_FROM
    image.save(buffer, "PNG", compress_level=1, compress_type=Z_RLE if large else Z_DEFAULT_STRATEGY)
    return buffer.getvalue()


def write_image(folder: Path, data: bytes, extension: str = "png") -> UUID:
    """Write image bytes to the file named by their id. The bytes are on disk when this returns, the name after `sync_names`."""
    identity = image_id(data)
    path = image_path(folder, identity, extension)
    if path.exists() and path.stat().st_size == len(data):
        path.touch()  # `gc` keeps young files, so that its row can follow
        return identity
    write_atomic(path, data, sync_name=False, make_parent=True)
    return identity


def sync_names(folder: Path, images: Iterable[bytes]) -> None:
    """Sync the names of image files to disk, and those of their folders.

    Args:
        images: ids of the images.
    """
    folders = sorted({image[:1].hex() for image in images})
    if not folders:
        return
    try:
        for name in folders:
            with suppress(FileNotFoundError):  # `prefloop store check` reports missing images
                sync_folder(folder / name)
        sync_folder(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
