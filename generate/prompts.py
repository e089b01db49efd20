"""Read prompt files of any common format into texts with tags."""

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Literal

from ..core.errors import UsageError, reading

BUILT_IN = {"shapes": "train.jsonl", "shapes-heldout": "heldout.jsonl"}
FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Prompt:
    text: str
    tags: dict[str, str] = field(default_factory=dict)
    """Every other column of the file, such as PartiPrompts' Category and Challenge."""


def read_prompts(source: str, limit: int | None = None) -> list[Prompt]:
    """The prompts of a file, each text once, in the file's order.

    Args:
        source: "shapes", "shapes-heldout", or a .txt (one prompt per line), .jsonl, .json, .csv, .tsv or .parquet file;
            all but .txt have a column "prompt", in upper or lower case, and may have others.

    Raises:
        UsageError: if the file is missing, has another format, or has no such column or no prompts.
    """
    if source in BUILT_IN:
        path = Path(str(files("prefloop").joinpath("shapes", "prompts", BUILT_IN[source])))
    else:
        path = Path(os.path.expanduser(source))
    with reading(path):
        is_file = path.is_file()
    if not is_file:
        raise UsageError(f"prompt file {source} not found; name a file, or one of {', '.join(BUILT_IN)}")
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{source} is not a prompt file: its name must end in {', '.join(FORMATS)}")
    prompts: dict[str, Prompt] = {}
    for where, text, tags in _rows(path):
        if not text.strip():
            continue
        if "\x00" in text:
            raise UsageError(f"{source}, {where}: the prompt contains a NUL character; remove it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{source}, {where}: the prompt is not valid Unicode: {error.reason}; remove it"
            ) from error
        prompts.setdefault(text, Prompt(text, tags))
        if limit is not None and len(prompts) == limit:
            break
    if not prompts:
        raise UsageError(f"{source} holds no prompts")
    return list(prompts.values())


def _rows(path: Path) -> Iterable[tuple[str, str, dict[str, str]]]:
    """Place in the file, text and tags of each row."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}; convert it first") from error
    if suffix == ".txt":
        for number, line in enumerate(text.split("\n"), 1):
            yield f"line {number}", line.rstrip("\r"), {}
    elif suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", *_record(path, f"line {number}", _json(path, f"line {number}", line))
    elif suffix == ".json":
        items = _json(path, "line 1", text)
        if not isinstance(items, list):
            raise UsageError(f"{path} must hold a JSON list of prompts")
        for number, item in enumerate(items, 1):
            yield f"item {number}", *_record(path, f"item {number}", item)
    else:
        try:
            rows = _table(text, "\t" if suffix == ".tsv" else ",")
        except csv.Error as error:
            raise UsageError(
                f"{path} is not valid CSV: {error}; double the quotation marks inside quoted texts"
            ) from error
        for number, row in enumerate(rows, 2):
            yield f"row {number}", *_record(path, f"row {number}", row)


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


def _record(path: Path, where: str, item: object) -> tuple[str, dict[str, str]]:
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, dict):
        raise UsageError(f"{path}, {where}: must be a string or an object")
    column = next((key for key in item if isinstance(key, str) and key.lower() == "prompt"), None)
    if column is None:
        names = ", ".join(str(key) for key in item)
        raise UsageError(f"{path}, {where}: no column 'prompt'; the columns are {names}")
    if not isinstance(item[column], str):
        raise UsageError(f"{path}, {where}: the prompt is not a string")
    tags = {
        str(key): str(value) for key, value in item.items() if key not in (column, None) and value not in (None, "")
    }
    return item[column], tags


def _parquet(path: Path) -> Iterable[tuple[str, str, dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path} is not a Parquet file") from error
    simple = [
        field.name
        for field in file.schema_arrow
        if not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type)
    ]
    number = 0
    for batch in file.iter_batches(columns=simple):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", *_record(path, f"row {number}", row)
