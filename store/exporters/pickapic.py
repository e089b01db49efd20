"""Parquet in the schema of Pick-a-Pic, ties included, for loaders written for it."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from ..pairstore import PairStore
from .shards import write_parquet

SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")),
        ("has_label", pa.bool_()),
        ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()),
        ("image_1_uid", pa.string()),
        ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()),
    ]
)
_LABEL_0 = {"a": 1.0, "b": 0.0, "tie": 0.5}


def write_pickapic(folder: Path, rows: pa.Table, store: PairStore) -> None:
    """image_0 is the store's image_a; user_id is the labeler's index in alphabetical order, from 0."""
    labelers = sorted(set(rows["labeler"].to_pylist()))
    number = 0

    def columns(row: dict[str, Any], a: bytes, b: bytes) -> dict[str, Any]:
        nonlocal number
        number += 1
        label = _LABEL_0[row["choice"]]
        return {
            "are_different": True,
            "best_image_uid": {1.0: row["image_a"], 0.0: row["image_b"], 0.5: "tie"}[label],
            "caption": row["prompt"],
            "has_label": True,
            "image_0_uid": row["image_a"],
            "image_1_uid": row["image_b"],
            "jpg_0": a,
            "jpg_1": b,
            "label_0": label,
            "label_1": 1 - label,
            "model_0": row["model_a"],
            "model_1": row["model_b"],
            "ranking_id": number,
            "user_id": labelers.index(row["labeler"]),
            "num_example_per_prompt": row["pairs_of_prompt"],
        }

    write_parquet(folder, rows, store, SCHEMA, columns)
