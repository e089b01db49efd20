"""Parquet files, and Arrow files of `datasets`, in batches that fit in memory. Paths in their rows are never opened."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import PrefloopError
from .batches import Batch

_BATCH_BYTES = 64_000_000
_BATCH_ROWS = 8192


def read_parquet(paths: Sequence[Path]) -> Iterator[Batch]:
    for path in paths:
        try:
            yield from _arrow(path) if path.suffix == ".arrow" else _parquet(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise PrefloopError(f"{path} cannot be read: {_reason(error)}; download it again") from error


def column_names(path: Path) -> list[str]:
    try:
        return (_stream(path) if path.suffix == ".arrow" else pq.read_schema(path)).names
    except (pa.ArrowInvalid, OSError) as error:
        raise PrefloopError(f"{path} cannot be read: {_reason(error)}; download it again") from error


def n_rows(paths: Sequence[Path]) -> int | None:
    """Number of rows in Parquet files, from their metadata; None for Arrow files, which do not say."""
    if any(path.suffix == ".arrow" for path in paths):
        return None
    return sum(pq.read_metadata(path).num_rows for path in paths)


def _parquet(path: Path) -> Iterator[Batch]:
    with pq.ParquetFile(path) as file:
        size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
        rows_at_once = max(1, min(_BATCH_ROWS, _BATCH_BYTES * file.metadata.num_rows // max(size, 1)))
        row = 1
        for batch in file.iter_batches(batch_size=rows_at_once):
            yield Batch(path.name, row, pa.table(batch))
            row += batch.num_rows


def _arrow(path: Path) -> Iterator[Batch]:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as file:
        row = 1
        for batch in file:
            yield Batch(path.name, row, pa.table(batch))
            row += batch.num_rows


def _stream(path: Path) -> pa.Schema:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as file:
        return file.schema


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).split("\n")[0]
