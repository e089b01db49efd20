"""Pictures as pages show them: those the store knows, with the pixels that scorers and training see."""

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
_KEPT = 64_000_000
"""Bytes of pictures kept in memory."""
THUMBNAIL = 448
"""Pixels of the longer side at most."""
# the name is the content's hash: what a browser has of it never changes
_CACHED = {"cache-control": "private, max-age=31536000, immutable"}


class Pictures:
    """Reads, checks and keeps the last few."""

    def __init__(self, store: PairStore) -> None:
        self.store = store
        self._kept: OrderedDict[tuple[UUID, bool], tuple[bytes, str]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def shown(self, image: UUID, form: str | None = None, *, small: bool = False) -> tuple[bytes, str]:
        """Bytes and media type.

        Args:
            form: extension of its file where that is known: the store is not asked then.

        Raises:
            ImageError: where it cannot be read, with the reason.
            KeyError: where the store knows no such picture.
        """
        with self._lock:
            if (image, small) in self._kept:
                self._kept.move_to_end((image, small))
                return self._kept[image, small]
        form = form or self._form(image)
        made = _made(self.store, image, form, small)
        with self._lock:
            if (image, small) not in self._kept:
                self._kept[image, small] = made
                self._bytes += len(made[0])
            while self._bytes > _KEPT:
                self._bytes -= len(self._kept.popitem(last=False)[1][0])
        return made

    def _form(self, image: UUID) -> str:
        for (form,) in self.store.rows("select format from images where image_id = ?", [image]):
            return form
        raise KeyError(image)

    def respond(self, name: str, *, small: bool = False) -> Response:
        """The answer to a request for a picture by the hex digits of its id."""
        if not HEX.fullmatch(name):
            raise HTTPException(404)
        try:
            data, media_type = self.shown(UUID(name), small=small)
        except KeyError:
            raise HTTPException(404) from None
        except ImageError as error:
            raise HTTPException(410, f"this picture cannot be shown: {error.reason}") from error
        return Response(data, media_type=media_type, headers=_CACHED)


def _made(store: PairStore, image: UUID, form: str, small: bool) -> tuple[bytes, str]:
    path = store.image_path(image, form)
    pixels = load_image(path, image)
    if small and max(pixels.size) > THUMBNAIL:
        pixels.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        pixels.save(buffer, "WEBP", quality=85)
        return buffer.getvalue(), _TYPES["webp"]
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as raw:
        # a browser would show another picture: turned, on the page's own colour, or by a colour profile
        plain = (
            raw.mode == "RGB" and raw.size == pixels.size and not {"exif", "icc_profile", "transparency"} & {*raw.info}
        )
    return (data, _TYPES[form]) if plain else (png_bytes(pixels), _TYPES["png"])
