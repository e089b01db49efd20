"""Folders chosen and rejected with equal names, and a caption beside each picture: what other trainers read."""

from pathlib import Path

import pyarrow as pa

from ...core.errors import UsageError
from ..images import format_of
from ..pairstore import PairStore
from .select import decided, pictures
from .shards import slices

_ROWS = 256


def write_folders(folder: Path, rows: pa.Table, store: PairStore) -> None:
    """Raises:
    UsageError: where labels of several labelers are selected; a pair has one place here.
    """
    labelers = sorted(set(rows["labeler"].to_pylist()))
    if len(labelers) > 1:
        raise UsageError(f"folders hold the labels of one labeler; give --labeler with one of {', '.join(labelers)}")
    for side in ("chosen", "rejected"):
        (folder / side).mkdir()
    for part in slices(rows, _ROWS):
        for row, a, b in pictures(store, part):
            for side, data in zip(("chosen", "rejected"), decided(row, a, b), strict=True):
                (folder / side / f"{row['pair_id']}.{format_of(data)}").write_bytes(data)
                (folder / side / f"{row['pair_id']}.txt").write_text(row["prompt"], "utf-8", newline="")
