"""The journal: append-only Parquet parts, one table each. It is the truth; the database is made from it."""

import os
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import cannot_write

_ID, _TEXT, _TIME = pa.uuid(), pa.string(), pa.timestamp("us")


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


# In the order in which parts are taken into the tables.
TABLES: dict[str, pa.Schema] = {
    "runs": _schema(
        run_id=_ID,
        kind=_TEXT,
        status=_TEXT,
        started=_TIME,
        updated=_TIME,
        config=_TEXT,
        versions=_TEXT,
        git_commit=_TEXT,
        parents=pa.list_(_TEXT),
        summary=_TEXT,
        error=_TEXT,
    ),
    "prompts": _schema(prompt_id=_ID, prompt=_TEXT, split=_TEXT, tags=_TEXT),
    "models": _schema(model_id=_ID, name=_TEXT, config=_TEXT),
    "images": _schema(image_id=_ID, width=pa.int32(), height=pa.int32(), format=_TEXT, n_bytes=pa.int64()),
    "generations": _schema(
        generation_id=_ID,
        prompt_id=_ID,
        model_id=_ID,
        image_id=_ID,
        sampler=_TEXT,
        seed=pa.int64(),
        image_index=pa.int32(),
        run_id=_ID,
    ),
    "pairs": _schema(pair_id=_ID, prompt_id=_ID, image_a=_ID, image_b=_ID, source=_TEXT, run_id=_ID),
    "scorers": _schema(scorer=_TEXT, name=_TEXT, config=_TEXT),
    "scores": _schema(scorer=_TEXT, image_id=_ID, prompt_id=_ID, score=pa.float32(), run_id=_ID),
    "labelers": _schema(labeler=_TEXT, kind=_TEXT, config=_TEXT),
    "labels": _schema(
        pair_id=_ID,
        labeler=_TEXT,
        rep=pa.int32(),
        choice=_TEXT,
        p_a=pa.float32(),
        margin=pa.float32(),
        shown_left=_TEXT,
        ms=pa.int32(),
        run_id=_ID,
    ),
}

_KEY_LENGTH = {"scores": 3, "labels": 3}  # else a table's key is its first column


def key(table: str) -> list[str]:
    """The columns that tell a table's rows apart."""
    return TABLES[table].names[: _KEY_LENGTH.get(table, 1)]


def append(folder: Path, table: str, rows: Iterable[Mapping] | pa.Table) -> Path | None:
    """Write rows as one part that is on disk, whole, when this returns. None where there are no rows."""
    schema = TABLES[table]
    if isinstance(rows, pa.Table):
        table_rows: Any = rows
    else:
        plain = [{key: value.bytes if isinstance(value, UUID) else value for key, value in row.items()} for row in rows]
        unknown = {key for row in plain for key in row} - set(schema.names)
        assert not unknown, f"{table} has no column {unknown}"
        table_rows = pa.Table.from_pylist(plain, schema=schema)
    if table_rows.num_rows == 0:
        return None
    path = folder / part_name(table, f"{time.time_ns():020d}")
    write_part(path, table_rows)
    return path


def part_name(table: str, time_text: str) -> str:
    return f"{time_text}-{table}-{os.getpid()}-{secrets.token_hex(4)}.parquet"


def write_part(path: Path, table_rows: pa.Table) -> None:
    """One part that is on disk, whole, when this returns; nothing under its name before."""
    folder = path.parent
    temporary = folder / f".{path.name}.tmp"
    try:
        pq.write_table(table_rows, temporary, compression="zstd")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parts(folder: Path) -> dict[str, str]:
    """Name of each finished part → its table, oldest first."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".parquet") and entry.name[0] != ".")
    return {name: name.split("-")[1] for name in names}


def n_rows(path: Path) -> int:
    return pq.ParquetFile(path).metadata.num_rows
