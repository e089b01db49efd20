"""What an import would store, estimated from the first pairs of the source."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from ..images import ImageError, load_image
from .formats import Source
from .record import Excluded

_RECORDS = 100


def preview(source: Source) -> dict[str, Any]:
    """Read and decode a hundred records; write nothing.

    Returns:
        format, labeler, rows (None if that is known only after reading), read and usable (pairs, or
        images without labels), image_bytes (mean), and
        excluded and examples as for an import.
    """
    excluded: Counter[str] = Counter()
    examples: list[str] = []
    n_pairs, n_images, sizes = 0, 0, []
    labelers: set[str] = set()

    def exclude(where: str, reason: str, n: int = 1) -> None:
        if reason not in excluded:
            examples.append(f"{where}: {reason}")
        excluded[reason] += n

    for record in islice(source.records, _RECORDS):
        if isinstance(record, Excluded):
            exclude(*record)
            continue
        problems: dict[int, str] = {}
        for place, image in enumerate(record.images):
            try:
                load_image(image.source)
                sizes.append(len(image.source) if isinstance(image.source, bytes) else _size(image.source))
            except ImageError as error:
                problems[place] = f"image {error.reason}"
        if not record.preferences:
            n_images += not problems
            if problems:
                exclude(record.where, problems[0])
        for preference in record.preferences:
            if reason := problems.get(preference.first) or problems.get(preference.second):
                exclude(record.where, reason)
            else:
                n_pairs += 1
                labelers.add(preference.labeler or source.labeler or "")
    n_usable = n_pairs + n_images
    return {
        "format": source.format,
        "labeler": source.labeler,
        "labelers": sorted(labelers),
        "rows": source.n_rows,
        "read": n_usable + excluded.total(),
        "usable": n_usable,
        "pairs": n_pairs,
        **({"images": n_images} if source.labeler is None else {}),
        "image_bytes": round(sum(sizes) / len(sizes)) if sizes else None,
        "excluded": dict(excluded),
        "examples": examples,
    }


def _size(path: Path) -> int:
    return path.stat().st_size
