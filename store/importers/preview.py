"""What an import would keep, told from the first pairs of the source."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from ..images import ImageError, load_image
from .formats import Source
from .record import Bad

_RECORDS = 100


def preview(source: Source) -> dict[str, Any]:
    """Reads and decodes a hundred records; writes nothing.

    Returns:
        format, labeler, rows (None where only reading tells), read and usable (pairs), picture_bytes (mean), left_out
        and examples as an import gives them.
    """
    left_out: Counter[str] = Counter()
    examples: list[str] = []
    n_pairs, sizes = 0, []

    def leave_out(where: str, reason: str, n: int = 1) -> None:
        if reason not in left_out:
            examples.append(f"{where}: {reason}")
        left_out[reason] += n

    for record in islice(source.records, _RECORDS):
        if isinstance(record, Bad):
            leave_out(*record)
            continue
        wrong: dict[int, str] = {}
        for place, picture in enumerate(record.pictures):
            try:
                load_image(picture.source)
                sizes.append(len(picture.source) if isinstance(picture.source, bytes) else _size(picture.source))
            except ImageError as error:
                wrong[place] = f"image {error.reason}"
        for judgement in record.judgements:
            if reason := wrong.get(judgement.first) or wrong.get(judgement.second):
                leave_out(record.where, reason)
            else:
                n_pairs += 1
    return {
        "format": source.format,
        "labeler": source.labeler,
        "rows": source.n_rows,
        "read": n_pairs + left_out.total(),
        "usable": n_pairs,
        "pairs": n_pairs,
        "picture_bytes": round(sum(sizes) / len(sizes)) if sizes else None,
        "left_out": dict(left_out),
        "examples": examples,
    }


def _size(path: Path) -> int:
    return path.stat().st_size
