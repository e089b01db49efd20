"""The journal: append-only Parquet parts, one table each. It is the source of truth; the database is built from it."""

import base64
import hashlib
import os
import re
import time
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.chunks import chunks
from ..core.errors import IntegrityError, reading
from ..core.files import write_atomic

ROWS_AT_ONCE = 8192
"""That are objects at a time while they become columns; an object takes ten times the memory."""
_ID, _TEXT, _TIME = pa.uuid(), pa.string(), pa.timestamp("us")


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


# In the order in which parts are ingested.
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
        sampling=_TEXT,
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
        revision=pa.int32(),
        choice=_TEXT,
        p_a=pa.float32(),
        margin=pa.float32(),
        shown_left=_TEXT,
        response_ms=pa.int32(),
        run_id=_ID,
        notes=_TEXT,
    ),
    "evaluations": _schema(evaluation_id=_ID, generation_id=_ID, place=pa.int32(), tags=_TEXT),
    "answers": _schema(
        answer_id=_ID,
        judge=_TEXT,
        prompt_id=_ID,
        image_id=_ID,
        pair_id=_ID,
        answer=_TEXT,
        value=pa.float32(),
        model=_TEXT,
        template=_TEXT,
        template_hash=_TEXT,
        details=_TEXT,
        run_id=_ID,
    ),
}


CHECKSUM_LENGTH = 32
"""Hexadecimal digits of a part's sha256 in its name; the first parts that prefloop 0.1 wrote have 8 random digits there."""
_NAME = re.compile(r"\d{20}-([a-z]+)-\d+-(?:[0-9a-f]{8}|[0-9a-f]{32})\.parquet")  # time, table, process, checksum
REPLACED = "prefloop.replaced"  # key in a part's footer
_KEY_LENGTH = {"scores": 3, "labels": 3, "evaluations": 2}  # else a table's key is its first column


_OLD_NAMES: dict[str, dict[str, str]] = {
    "generations": {"sampling": "sampler"},
    "labels": {"revision": "rep", "response_ms": "ms"},
}
"""Columns that have another name in the parts that prefloop 0.1 wrote. Parts are never rewritten for it."""
_ADDED = {"labels": {"notes"}}
"""Columns that parts of earlier schema versions lack; they are null there."""


def key(table: str) -> list[str]:
    """The columns that identify a table's rows."""
    return TABLES[table].names[: _KEY_LENGTH.get(table, 1)]


def selection(table: str, columns: Collection[str]) -> str:
    """The table's columns, as a select list over a part that has these columns."""
    sources = {name: before for name, before in _OLD_NAMES.get(table, {}).items() if before in columns}
    sources |= {name: "null::varchar" for name in _ADDED.get(table, ()) if name not in columns}
    return ", ".join(f"{sources[name]} as {name}" if name in sources else name for name in TABLES[table].names)


def append(folder: Path, table: str, rows: Iterable[Mapping] | pa.Table) -> Path | None:
    """Write rows as one part, which is complete and on disk when this returns. None if there are no rows."""
    table_rows: Any = rows if isinstance(rows, pa.Table) else as_table(table, rows)
    if table_rows.num_rows == 0:
        return None
    return write_part(folder, table, table_rows, f"{time.time_ns():020d}")


def as_table(table: str, rows: Iterable[Mapping]) -> pa.Table:
    """Rows as an Arrow table; columns that a row lacks are null."""
    schema, tables = TABLES[table], list[pa.Table]()
    for some in chunks(rows, ROWS_AT_ONCE):
        plain = [{key: value.bytes if isinstance(value, UUID) else value for key, value in row.items()} for row in some]
        unknown = {key for row in plain for key in row} - set(schema.names)
        assert not unknown, f"{table} has no column {unknown}"
        tables.append(pa.Table.from_pylist(plain, schema=schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def write_part(folder: Path, table: str, rows: pa.Table, time_text: str, replaced: Sequence[str] = ()) -> Path:
    """Write one part, complete and on disk when this returns; nothing has its name before.

    Args:
        replaced: names of the parts whose rows it holds; they are stored in its footer.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
        writer.write_table(rows)
        if replaced:
            packed = zlib.compress("\n".join(replaced).encode())
            writer.add_key_value_metadata({REPLACED: base64.b64encode(packed).decode()})
    data = memoryview(sink.getvalue())
    path = folder / f"{time_text}-{table}-{os.getpid()}-{checksum(data)}.parquet"
    write_atomic(path, data)
    return path


def parts(folder: Path) -> dict[str, str]:
    """Name of each finished part → its table, oldest first.

    Raises:
        IntegrityError: if a Parquet file in the folder is not a part of this journal.
    """
    with reading(folder), os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".parquet") and entry.name[0] != ".")
    found = {}
    for name in names:
        matched = _NAME.fullmatch(name)
        if matched is None or matched[1] not in TABLES:
            raise IntegrityError(f"{folder / name} is not a part of the journal; move it to another folder")
        found[name] = matched[1]
    return found


def checksum(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:CHECKSUM_LENGTH]
