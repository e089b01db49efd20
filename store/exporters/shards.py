"""Parquet files of a few hundred megabytes per split, as datasets on the hub have them."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..pairstore import PairStore
from .select import with_images

_ROWS = 128  # per row group: with images, tens of megabytes
_SHARD_BYTES = 500_000_000


def slices(rows: pa.Table, n: int) -> Iterable[list[dict[str, Any]]]:
    return (rows.slice(start, n).to_pylist() for start in range(0, rows.num_rows, n))


def by_split(rows: pa.Table) -> Iterable[tuple[str, pa.Table]]:
    """Each split with its rows, which must be sorted by split."""
    splits = rows["split"].to_pylist()
    start = 0
    for split, members in groupby(splits):
        n = len(list(members))
        yield split, rows.slice(start, n)
        start += n


def write_parquet(folder: Path, rows: pa.Table, store: PairStore, schema: pa.Schema, columns) -> None:
    """data/SPLIT-00000.parquet and so on.

    Args:
        columns: (row, image_a's bytes, image_b's bytes) → the row as the schema has it.
    """
    (folder / "data").mkdir()
    for split, of_split in by_split(rows):
        number, size, writer = 0, 0, None
        for part in slices(of_split, _ROWS):
            if writer is None:
                writer = pq.ParquetWriter(folder / "data" / f"{split}-{number:05d}.parquet", schema, compression="zstd")
            table = pa.Table.from_pylist([columns(*item) for item in with_images(store, part)], schema)
            writer.write_table(table)
            size += table.nbytes
            if size > _SHARD_BYTES:
                writer.close()
                number, size, writer = number + 1, 0, None
        if writer is not None:
            writer.close()
