"""Flow-Factory's records for offline DPO (schema version 2): JSON lines with an input and a preference between two media."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...core.errors import UsageError
from .batches import Batch
from .json_rows import as_table, json_objects
from .pairs import pair_records, values
from .ranked import SelectedRows
from .record import Excluded, Record

_ROWS = 4096


def is_flow_factory(path: Path) -> bool:
    """True if the first record of a file of JSON lines has a schema version and supervision."""
    try:
        return {"schema_version", "supervision"} <= next(json_objects(path), {}).keys()
    except UsageError:
        return False


def read_flow_factory(paths: Sequence[Path]) -> Iterator[Batch]:
    """A row per record; why a record cannot be used is in the column problem. Media are below the file's folder.

    Args:
        paths: files of JSON lines. Those that do not begin with such a record, such as prompts for evaluation, are left out.
    """
    for path in filter(is_flow_factory, paths):
        first, records = 1, json_objects(path)
        while rows := [_row(record) for record in islice(records, _ROWS)]:
            yield Batch(path.name, first, as_table(rows, path), path.parent.resolve())
            first += len(rows)


def flow_factory_records(batches: SelectedRows, columns: Mapping[str, str]) -> Iterator[Record | Excluded]:
    for batch, rows in batches:
        problems = values(batch.table, "problem")
        yield from (Excluded(batch.where(row), problems[row]) for row in rows if problems[row])
        if usable := [row for row in rows if not problems[row]]:
            yield from pair_records(batch, usable, columns)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    inputs, supervision, metadata = (_object(record.get(name)) for name in ("input", "supervision", "metadata"))
    chosen, rejected = (_image(supervision.get(side)) for side in ("chosen", "rejected"))
    return {
        "prompt": _text(inputs.get("prompt")),
        "chosen": chosen,
        "rejected": rejected,
        **{name: _text(metadata.get(name)) for name in ("labeler", "chosen_model", "rejected_model")},
        **{name: _number(metadata.get(name)) for name in ("margin", "p_chosen")},
        "tags": json.dumps(metadata["tags"], ensure_ascii=False) if _object(metadata.get("tags")) else None,
        "problem": _problem(record, inputs, supervision, chosen, rejected),
    }


def _problem(
    record: dict[str, Any],
    inputs: dict[str, Any],
    supervision: dict[str, Any],
    chosen: str | None,
    rejected: str | None,
) -> str | None:
    if record.get("schema_version") != 2:
        return "schema_version is not 2"
    if supervision.get("type") != "preference":
        return "no preference"
    if inputs.get("media"):
        return "media beside the prompt"
    return None if chosen and rejected else "not one image on each side"


def _image(candidate: Any) -> str | None:
    """The path of a candidate that is one image."""
    media = _object(candidate).get("media")
    if not isinstance(media, list) or len(media) != 1 or _object(media[0]).get("type") != "image":
        return None
    return _text(media[0].get("path"))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """NaN, which no label can have, for a value that is not a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
    return None if value is None else float(value) if is_number else math.nan
