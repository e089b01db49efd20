"""Folders chosen and rejected with equal file names, and a caption beside each image, as other trainers expect them."""

from pathlib import Path

import pyarrow as pa

from ...core.errors import UsageError
from ..images import format_of
from ..pairstore import PairStore
from .select import chosen_and_rejected, with_images
from .shards import slices

_ROWS = 256


def write_folders(folder: Path, rows: pa.Table, store: PairStore) -> None:
    """
    Raises:
        UsageError: if labels of several labelers are selected; this format holds one label per pair.
    """
    labelers = sorted(set(rows["labeler"].to_pylist()))
    if len(labelers) > 1:
        raise UsageError(
            f"the format folders holds the labels of one labeler; give --labeler with one of {', '.join(labelers)}"
        )
    for side in ("chosen", "rejected"):
        (folder / side).mkdir()
    for part in slices(rows, _ROWS):
        for row, a, b in with_images(store, part):
            for side, data in zip(("chosen", "rejected"), chosen_and_rejected(row, a, b), strict=True):
                (folder / side / f"{row['pair_id']}.{format_of(data)}").write_bytes(data)
                (folder / side / f"{row['pair_id']}.txt").write_text(row["prompt"], "utf-8", newline="")
