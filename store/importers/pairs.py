"""Tables with one pair per row: Pick-a-Pic's image_0 and image_1 with a label, or chosen and rejected."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import UsageError
from ...core.text import visible
from ...core.validate import unknown
from .batches import Batch
from .record import Choice, Excluded, Preference, Record, SourceImage, prompt_problem

ColumnMap = Mapping[str, str]
"""Our name for a column → its name in the source."""

PICKAPIC: ColumnMap = {
    "prompt": "caption",
    "image_0": "jpg_0",
    "image_1": "jpg_1",
    "label_0": "label_0",
    "label_1": "label_1",
    "has_label": "has_label",
    "model_0": "model_0",
    "model_1": "model_1",
}
CHOSEN_REJECTED: ColumnMap = {
    name: name for name in ("prompt", "chosen", "rejected", "chosen_model", "rejected_model")
} | {
    "labeler": "labeler",
    "margin": "margin",
    "p_chosen": "p_chosen",
}
TAGS = ("evolution", "category", "sub_category", "tags")
"""Columns about the prompt: those of open-image-preferences, and the JSON object that an export writes."""
COLUMN_NAMES = tuple(dict.fromkeys([*PICKAPIC, *CHOSEN_REJECTED, "tags"]))


def column_map(defaults: ColumnMap, mapping: ColumnMap, columns: list[str]) -> ColumnMap:
    """The columns to read: those of the defaults that exist, and the user's.

    Args:
        mapping: `--map`.

    Raises:
        UsageError: if a name is unknown, or the columns do not make a pair.
    """
    for name, column in mapping.items():
        if name not in COLUMN_NAMES:
            raise unknown("column in --map", name, COLUMN_NAMES)
        for part in column.split("+") if name == "tags" else [column]:
            if part not in columns:
                raise UsageError(f"--map {name}={column}: no column {part!r}; the columns are {', '.join(columns)}")
    used = {name: column for name, column in defaults.items() if column in columns} | dict(mapping)
    if "tags" not in used and (tags := [tag for tag in TAGS if tag in columns]):
        used["tags"] = "+".join(tags)
    if "prompt" not in used or not ({"chosen", "rejected"} <= used.keys() or {"image_0", "image_1"} <= used.keys()):
        raise UsageError(
            "the columns do not say which are prompt, chosen and rejected (or image_0, image_1 and label_0): "
            f"give --map prompt=COLUMN and so on; the columns are {', '.join(columns)}"
        )
    return used


def pair_records(batch: Batch, rows: list[int], columns: ColumnMap) -> Iterator[Record | Excluded]:
    decided = "chosen" in columns
    first, second = ("chosen", "rejected") if decided else ("image_0", "image_1")
    models = ("chosen_model", "rejected_model") if decided else ("model_0", "model_1")
    table = batch.table if len(rows) == batch.table.num_rows else batch.table.take(pa.array(rows, pa.int64()))

    def column(name: str) -> list[Any]:
        return values(table, columns.get(name))

    tags = [tag for tag in columns.get("tags", "").split("+") if tag]
    tag_columns = [values(table, tag) for tag in tags]
    parts = zip(
        rows,
        column("prompt"),
        column(first),
        column(second),
        column(models[0]),
        column(models[1]),
        column("labeler"),
        column("margin"),
        column("p_chosen") if decided else column("label_0"),
        column("label_1"),
        column("has_label"),
        strict=True,
    )
    for position, cells in enumerate(parts):
        row, prompt, image_0, image_1, model_0, model_1, labeler, margin, p, p_other, has_label = cells
        where = f"{batch.name}, row {batch.first_row + row}"
        if reason := prompt_problem(prompt):
            yield Excluded(where, reason)
            continue
        sources = image_source(image_0, batch.root), image_source(image_1, batch.root)
        if isinstance(sources[0], str) or isinstance(sources[1], str):
            yield Excluded(where, next(source for source in sources if isinstance(source, str)))
            continue
        p = None if has_label is False else p
        if not _is_label(p, p_other) or not _is_margin(margin):
            yield Excluded(where, "the label is not between 0 and 1, or the margin is not a number")
            continue
        if labeler is not None and visible(str(labeler)) != str(labeler):
            yield Excluded(where, "the labeler's name has invisible characters")
            continue
        choice, p = ("first", p) if decided else _choice(p)
        yield Record(
            where,
            prompt,
            (SourceImage(sources[0], _name(model_0)), SourceImage(sources[1], _name(model_1))),
            (Preference(0, 1, choice, p, margin, _name(labeler)),),
            tags_of(tags, [column[position] for column in tag_columns]) if tags else {},
        )


def values(table: pa.Table, name: str | None) -> list[Any]:
    """A column as Python values, of an Image column the bytes; all None if the column does not exist."""
    if name is None:
        return [None] * table.num_rows
    column = table[name]
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.call_function("struct_field", [column], pc.StructFieldOptions("bytes"))
    return column.to_pylist()


def image_source(value: Any, root: Path | None) -> bytes | Path | str:
    """The image's bytes, or a file below the root, or as a text the reason why there is neither."""
    if isinstance(value, bytes):
        return value or "no image"
    if root is None or not isinstance(value, str) or not value or "\x00" in value:
        return "no image"  # a path or URL in a table: its author must not choose which files are opened
    path = (root / value).resolve()
    return path if path.is_relative_to(root) else "a path that leaves the folder"


def tags_of(names: list[str], cells: list[Any]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for name, value in zip(names, cells, strict=True):
        if name == "tags" and (object_ := _object(value)) is not None:
            tags |= {str(key): str(item) for key, item in object_.items() if item is not None}
        elif value is not None and value != "":
            tags[name] = str(value)
    return tags


def _object(value: Any) -> dict | None:
    """A JSON object, or the text of one."""
    try:
        parsed = json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_label(p: Any, other: Any) -> bool:
    if p is None:
        return True
    return isinstance(p, int | float) and 0 <= p <= 1 and (other is None or abs(p + other - 1) < 1e-6)


def _is_margin(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _name(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _choice(p: float | None) -> tuple[Choice | None, float | None]:
    """The choice, and the probability if it says more than the choice."""
    if p is None:
        return None, None
    choice: Choice = "first" if p > 0.5 else "second" if p < 0.5 else "tie"
    return choice, None if p in (0, 0.5, 1) else float(p)
