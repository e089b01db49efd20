"""Images as pages show them: those in the store, with the pixels that scorers and training see."""

import io
import re
import threading
from collections import OrderedDict
from uuid import UUID

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ...store import ImageError, PairStore, load_image
from ...store.images import png_bytes

HEX = re.compile(r"[0-9a-f]{32}")
_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_CACHE_BYTES = 64_000_000
THUMBNAIL = 448
"""Maximum length of the longer side in pixels."""
# the name is the hash of the content: what a browser has cached never changes
_IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}


class ImageCache:
    """Reads and checks images, and keeps the latest in memory."""

    def __init__(self, store: PairStore) -> None:
        self.store = store
        self._cache: OrderedDict[tuple[UUID, bool], tuple[bytes, str]] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def get(self, image: UUID, extension: str | None = None, *, small: bool = False) -> tuple[bytes, str]:
        """Bytes and media type.

        Args:
            extension: that of its file; None looks it up in the store.
            small: as a thumbnail.

        Raises:
            ImageError: if it cannot be read, with the reason.
            KeyError: if it is not in the store.
        """
        key = image, small
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        encoded = _encode(self.store, image, extension or self._extension(image), small)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = encoded
                self._n_bytes += len(encoded[0])
            while self._n_bytes > _CACHE_BYTES:
                self._n_bytes -= len(self._cache.popitem(last=False)[1][0])
        return encoded

    def _extension(self, image: UUID) -> str:
        for (extension,) in self.store.rows("select format from images where image_id = ?", [image]):
            return extension
        raise KeyError(image)

    def respond(self, name: str, *, small: bool = False) -> Response:
        """The response to a request for an image by the hex digits of its id."""
        if not HEX.fullmatch(name):
            raise HTTPException(404)
        try:
            data, media_type = self.get(UUID(name), small=small)
        except KeyError:
            raise HTTPException(404) from None
        except ImageError as error:
            raise HTTPException(410, f"this image cannot be shown: {error.reason}") from error
        return Response(data, media_type=media_type, headers=_IMMUTABLE)


def _encode(store: PairStore, image: UUID, extension: str, small: bool) -> tuple[bytes, str]:
    path = store.image_path(image, extension)
    pixels = load_image(path, image)
    if small and max(pixels.size) > THUMBNAIL:
        pixels.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        pixels.save(buffer, "WEBP", quality=85)
        return buffer.getvalue(), _TYPES["webp"]
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as raw:
        # a browser would show other pixels: rotated, on the page's background, or through a color profile
        plain = (
            raw.mode == "RGB" and raw.size == pixels.size and not {"exif", "icc_profile", "transparency"} & {*raw.info}
        )
    return (data, _TYPES[extension]) if plain else (png_bytes(pixels), _TYPES["png"])
