"""Images of an evaluation whose files are gone or damaged: their scores are in the store, but they cannot be shown."""

import sys
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from ..core.ids import image_id
from ..core.text import plural, visible
from ..store import PairStore


def lost_images(store: PairStore, images: Iterable[UUID], left_out_of: str) -> set[UUID]:
    """Those whose file is missing or is not what was stored. A line on stderr says how many, and what finds them all.

    Args:
        left_out_of: what the caller leaves them out of, for that line.
    """
    lost = [image for image in sorted(set(images)) if not _is_intact(store.image_path(image), image)]
    if lost:
        line = (
            f"left out of {left_out_of}: {plural(len(lost), 'image')} whose file is missing or damaged, such as "
            f"{store.image_path(lost[0])}; `prefloop store check --store {store.path}` names all of them, to be restored from a backup"
        )
        print(visible(line), file=sys.stderr)
    return set(lost)


def _is_intact(path: Path, image: UUID) -> bool:
    try:
        return image_id(path.read_bytes()) == image
    except OSError:
        return False
