"""Images of an evaluation whose files are gone or damaged: their scores are in the store, but they cannot be shown."""

import sys
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from ..core.errors import PrefloopError
from ..core.ids import image_id
from ..core.text import plural, visible
from ..store import PairStore


def lost_images(store: PairStore, images: Iterable[UUID], what: str) -> set[UUID]:
    """Those whose file is missing or is not what was stored. A line on stderr says how many, and what finds them all.

    Args:
        what: what the caller leaves them out of, for that line.

    Raises:
        PrefloopError: if all are lost, as when the store's images are on a disk that is not there.
    """
    every = sorted(set(images))
    lost = {image: reason for image in every if (reason := _damage(store.image_path(image), image))}
    if not lost:
        return set()
    path, reason = store.image_path(min(lost)), lost[min(lost)]
    if len(lost) == len(every):
        raise PrefloopError(
            f"cannot read {path}: {reason}; no image for {what} can be read, so restore {store.path / 'images'} from a backup"
        )
    line = (
        f"left out of {what}: {plural(len(lost), 'image')} whose file is missing or damaged, such as {path}; "
        f"`prefloop store check --store {store.path}` names all of them, to be restored from a backup"
    )
    print(visible(line), file=sys.stderr)
    return set(lost)


def _damage(path: Path, image: UUID) -> str | None:
    """Why an image file is not what was stored, or None."""
    try:
        return None if image_id(path.read_bytes()) == image else "it has changed since it was stored"
    except OSError as error:
        return error.strerror or str(error)
