"""JSON lists and JSON lines in batches of rows; images are paths below the file's folder."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...core.errors import UsageError
from .batches import Batch

_ROWS = 4096


def read_json(paths: Sequence[Path], root: Path | None = None) -> Iterator[Batch]:
    """
    Args:
        root: folder that the images must be in; None is each file's own.
    """
    for path in paths:
        first, items = 1, json_objects(path)
        while rows := list(islice(items, _ROWS)):
            yield Batch(path.name, first, as_table(rows, path), (root or path.parent).resolve())
            first += len(rows)


def as_table(rows: Sequence[dict], path: Path) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        json.dumps(
            rows, ensure_ascii=False, default=lambda _: ""
        ).encode()  # inside of nested values too, and before anything is kept
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except UnicodeEncodeError as error:
        raise UsageError(f"{path} holds half of a surrogate pair: {error}; write the whole character") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UsageError(f"{path}: a column holds values of several types: {error}; give them one type") from error


def json_objects(path: Path) -> Iterator[dict]:
    """
    Raises:
        UsageError: if the file is not UTF-8, not JSON, or holds something other than objects.
    """
    try:
        if path.suffix == ".json":
            yield from _objects(path, json.loads(path.read_bytes()))
            return
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield from _objects(path, [_line(path, number, line)])
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}; convert it first") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path}, line {number} is not valid JSON: {error}") from error


def _objects(path: Path, items: Any) -> Iterable[dict]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UsageError(f"{path} must hold JSON objects, one per row")
    return items
