"""Rows of prompt files of any common format: where each is, its prompt, and its other columns."""

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from ..core.errors import UsageError

TEXT_FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
FORMATS = (*TEXT_FORMATS, ".parquet")
Row = tuple[str, str, dict[str, str]]
"""Place in the file, prompt, tags."""


def read_rows(
    path: Path, prompt: str = "prompt", tags: Collection[str] | None = None, content: bytes | None = None
) -> Iterator[Row]:
    """The rows of a file, empty prompts too.

    Args:
        prompt: name of the column with the prompts, in upper or lower case; a .txt file has one prompt per line.
        tags: names of the columns to keep, in upper or lower case; None keeps every other column.
        content: of the file, if it was read already; not for .parquet, of which only some columns are read.

    Raises:
        UsageError: if the file is not what its suffix says, or has no such column.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{path} is not a prompt file: its name must end in {', '.join(FORMATS)}")
    for where, item in _items(path, suffix, content):
        yield where, *_record(path, where, item, prompt, tags)


def _items(path: Path, suffix: str, content: bytes | None) -> Iterator[tuple[str, object]]:
    """The place and the text or columns of each row."""
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = (path.read_bytes() if content is None else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}; convert it first") from error
    if suffix == ".txt":
        for number, line in enumerate(text.split("\n"), 1):
            yield f"line {number}", line.rstrip("\r")
    elif suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", _json(path, f"line {number}", line)
    elif suffix == ".json":
        items = _json(path, "line 1", text)
        if not isinstance(items, list):
            raise UsageError(f"{path} must hold a JSON list of prompts")
        for number, item in enumerate(items, 1):
            yield f"item {number}", item
    else:
        try:
            rows = _table(text, "\t" if suffix == ".tsv" else ",")
        except csv.Error as error:
            raise UsageError(
                f"{path} is not valid CSV: {error}; double the quotation marks inside quoted texts"
            ) from error
        for number, row in enumerate(rows, 2):
            yield f"row {number}", row


def _json(path: Path, where: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}, {where} is not valid JSON: {error}") from error


def _table(text: str, delimiter: str) -> list[dict]:
    def rows(quoting: Literal[0, 3]) -> list[dict]:
        lines = io.StringIO(text, newline="")
        return list(csv.DictReader(lines, delimiter=delimiter, quoting=quoting, strict=True))

    csv.field_size_limit(max(len(text), 131_072))
    if delimiter == ",":
        return rows(csv.QUOTE_MINIMAL)
    try:
        quoted = rows(csv.QUOTE_MINIMAL)
        if not any("\n" in value for row in quoted for value in row.values() if isinstance(value, str)):
            return quoted
    except csv.Error:
        pass
    # a quotation mark that belongs to a prompt is unpaired, or paired mid-cell: this file does not quote its cells
    return rows(csv.QUOTE_NONE)


def _record(
    path: Path, where: str, item: object, prompt: str, tags: Collection[str] | None
) -> tuple[str, dict[str, str]]:
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, dict):
        raise UsageError(f"{path}, {where}: must be a string or an object")
    column = next((key for key in item if isinstance(key, str) and key.lower() == prompt.lower()), None)
    if column is None:
        names = ", ".join(str(key) for key in item)
        raise UsageError(f"{path}, {where}: no column {prompt!r}; the columns are {names}")
    if not isinstance(item[column], str):
        raise UsageError(f"{path}, {where}: the prompt is not a string")
    filled = {
        str(key): _tag(value) for key, value in item.items() if key not in (column, None) and value not in (None, "")
    }
    if tags is None:
        return item[column], filled
    names = {name.lower(): name for name in tags}
    return item[column], {names[key.lower()]: value for key, value in filled.items() if key.lower() in names}


def _tag(value: object) -> str:
    """A column's value as text; lists and objects as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path} is not a Parquet file") from error
    schema = file.schema_arrow
    simple = [
        field.name for field in schema if not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type)
    ]
    classes = {name: labels for name, labels in _class_names(schema.metadata or {}).items() if name in simple}
    number = 0
    for batch in file.iter_batches(columns=simple):
        for row in batch.to_pylist():
            number += 1
            for name, labels in classes.items():
                if isinstance(row[name], int) and 0 <= row[name] < len(labels):
                    row[name] = labels[row[name]]
            yield f"row {number}", row


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column → the names of its numbers, as the library datasets keeps those of a ClassLabel in a Parquet file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: list(feature["names"]) for name, feature in features.items() if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
