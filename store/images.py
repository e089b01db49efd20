"""Pictures on disk, named by their content, and the one door through which pixels come in."""

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
_FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
Reason = Literal["missing", "unreadable", "format", "animated", "too large", "hash"]


class ImageError(PrefloopError):
    """A picture that cannot be used, and why in one word."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def load_image(source: Path | bytes, expected: UUID | None = None, max_pixels: int = MAX_PIXELS) -> "Image.Image":
    """A picture as 8-bit RGB, upright, alpha laid on white, 16-bit scaled.

    Args:
        source: a PNG, JPEG or WebP file, or its bytes.
        expected: the id the bytes must have.
        max_pixels: width times height above which nothing is decoded.

    Raises:
        ImageError: where it is anything else; `reason` says what.
    """
    import numpy as np
    from PIL import Image, ImageOps

    name = "the picture" if isinstance(source, bytes) else str(source)
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
            if image.mode.startswith("I"):  # 16 bits a channel; convert() would cut off at 255
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
        raise ImageError("format", f"{name} is no PNG, JPEG or WebP picture") from error
    # Pillow's decoders raise whatever their format's code raises: OSError, SyntaxError, struct.error, ValueError …
    except Exception as error:
        raise ImageError("unreadable", f"{name} cannot be decoded: {error}") from error


def format_of(data: bytes) -> str:
    """Extension of a picture that `load_image` takes, by its first bytes."""
    return "png" if data[:1] == b"\x89" else "jpg" if data[:1] == b"\xff" else "webp"


def image_path(folder: Path, image: UUID, extension: str = "png") -> Path:
    return folder / image.hex[:2] / f"{image.hex}.{extension}"


def stored_at(image: UUID, extension: str) -> str:
    """The picture's path below the store's folder, as the view `image_files` tells it."""
    return f"images/{image.hex[:2]}/{image.hex}.{extension}"


def png_bytes(image: "Image.Image") -> bytes:
    """Level 1: three times quicker than the default for about 1 % more space."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_image(folder: Path, data: bytes, extension: str = "png") -> UUID:
    """Put a picture's bytes on disk under their id. The file is on disk when this returns; its name is after `sync_names`."""
    identity = image_id(data)
    path = image_path(folder, identity, extension)
    if path.exists() and path.stat().st_size == len(data):
        path.touch()  # young again: `gc` leaves it until a row mentions it
        return identity
    write_atomic(path, data, sync_name=False, make_parent=True)
    return identity


def sync_names(folder: Path, images: Iterable[bytes]) -> None:
    """Put the names of pictures on disk, and those of the folders they are in.

    Args:
        images: their ids.
    """
    folders = sorted({image[:1].hex() for image in images})
    if not folders:
        return
    try:
        for name in folders:
            with suppress(FileNotFoundError):  # `prefloop store check` tells of pictures that are gone
                sync_folder(folder / name)
        sync_folder(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
