"""Tables with one pair in a row: Pick-a-Pic's image_0 and image_1 with a label, or chosen and rejected."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import UsageError
from ...core.text import visible
from .batches import Batch
from .record import Bad, Choice, Judgement, Picture, Record, bad_prompt

Roles = Mapping[str, str]
"""Our name of a column → its name in the source."""

PICKAPIC: Roles = {
    "prompt": "caption",
    "image_0": "jpg_0",
    "image_1": "jpg_1",
    "label_0": "label_0",
    "label_1": "label_1",
    "has_label": "has_label",
    "model_0": "model_0",
    "model_1": "model_1",
}
DECIDED: Roles = {name: name for name in ("prompt", "chosen", "rejected", "chosen_model", "rejected_model")} | {
    "labeler": "labeler",
    "margin": "margin",
    "p_chosen": "p_chosen",
}
TAGS = ("evolution", "category", "sub_category", "tags")
"""Columns that tell about the prompt: those of open-image-preferences, and the JSON object that an export writes."""
NAMES = tuple(dict.fromkeys([*PICKAPIC, *DECIDED, "tags"]))


def roles(defaults: Roles, wanted: Roles, columns: list[str]) -> Roles:
    """Which column has which part: the defaults that are there, and what the user said.

    Raises:
        UsageError: where a name is unknown, or a pair cannot be told from the columns.
    """
    for name, column in wanted.items():
        if name not in NAMES:
            raise UsageError(f"--map knows no {name!r}; there are {', '.join(NAMES)}")
        for part in column.split("+") if name == "tags" else [column]:
            if part not in columns:
                raise UsageError(f"--map {name}={column}: there is no column {part!r}; there are {', '.join(columns)}")
    there = {name: column for name, column in defaults.items() if column in columns} | dict(wanted)
    if "tags" not in there and (tags := [tag for tag in TAGS if tag in columns]):
        there["tags"] = "+".join(tags)
    if "prompt" not in there or not ({"chosen", "rejected"} <= there.keys() or {"image_0", "image_1"} <= there.keys()):
        raise UsageError(
            "the columns do not say which are prompt, chosen and rejected (or image_0, image_1 and label_0): "
            f"give --map prompt=COLUMN and so on; there are {', '.join(columns)}"
        )
    return there


def pair_records(batch: Batch, rows: list[int], roles: Roles) -> Iterator[Record | Bad]:
    decided = "chosen" in roles
    first, second = ("chosen", "rejected") if decided else ("image_0", "image_1")
    models = ("chosen_model", "rejected_model") if decided else ("model_0", "model_1")
    table = batch.table if len(rows) == batch.table.num_rows else batch.table.take(pa.array(rows, pa.int64()))

    def column(name: str) -> list[Any]:
        return values(table, roles.get(name))

    tags = [tag for tag in roles.get("tags", "").split("+") if tag]
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
    for place, (row, prompt, one, other, model, other_model, labeler, margin, p, p_other, has_label) in enumerate(
        parts
    ):
        where = f"{batch.name}, row {batch.first_row + row}"
        if reason := bad_prompt(prompt):
            yield Bad(where, reason)
            continue
        sources = picture_source(one, batch.root), picture_source(other, batch.root)
        if isinstance(sources[0], str) or isinstance(sources[1], str):
            yield Bad(where, next(source for source in sources if isinstance(source, str)))
            continue
        p = None if has_label is False else p
        if not _is_label(p, p_other) or not _is_margin(margin):
            yield Bad(where, "no label between 0 and 1, or a margin that is no number")
            continue
        if labeler is not None and visible(str(labeler)) != str(labeler):
            yield Bad(where, "a labeler with characters that are not seen")
            continue
        choice, p = ("first", p) if decided else _chosen(p)
        yield Record(
            where,
            prompt,
            (Picture(sources[0], _name(model)), Picture(sources[1], _name(other_model))),
            (Judgement(0, 1, choice, p, margin, _name(labeler)),),
            _tags(tags, [found[place] for found in tag_columns]) if tags else {},
        )


def values(table: pa.Table, name: str | None) -> list[Any]:
    """A column as Python values; of Image columns the bytes. All None where there is no such column."""
    if name is None:
        return [None] * table.num_rows
    column = table[name]
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.call_function("struct_field", [column], pc.StructFieldOptions("bytes"))
    return column.to_pylist()


def picture_source(value: Any, root: Path | None) -> bytes | Path | str:
    """The picture's bytes, or a file below the root; a text says why there is neither."""
    if isinstance(value, bytes):
        return value or "no picture"
    if root is None or not isinstance(value, str) or not value:
        return "no picture"  # a path or URL in a table: whoever wrote the table must not choose what we open
    path = (root / value).resolve()
    return path if path.is_relative_to(root) else "a path that leaves the folder"


def _tags(names: list[str], found: list[Any]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for name, value in zip(names, found, strict=True):
        if name == "tags" and (object_ := _object(value)) is not None:
            tags |= {str(key): str(item) for key, item in object_.items() if item is not None}
        elif value is not None and value != "":
            tags[name] = str(value)
    return tags


def _object(value: Any) -> dict | None:
    """A JSON object, or the text of one."""
    try:
        found = json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_label(p: Any, other: Any) -> bool:
    if p is None:
        return True
    return isinstance(p, int | float) and 0 <= p <= 1 and (other is None or abs(p + other - 1) < 1e-6)


def _is_margin(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _name(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _chosen(p: float | None) -> tuple[Choice | None, float | None]:
    """The choice, and the probability where it says more than the choice."""
    if p is None:
        return None, None
    choice: Choice = "first" if p > 0.5 else "second" if p < 0.5 else "tie"
    return choice, None if p in (0, 0.5, 1) else float(p)
