"""Parquet that `datasets.load_dataset` opens with chosen and rejected as images."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..pairstore import PairStore
from .select import chosen_and_rejected
from .shards import write_parquet

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COLUMNS = {
    "pair_id": pa.string(),
    "prompt": pa.string(),
    "chosen": _IMAGE,
    "rejected": _IMAGE,
    "chosen_model": pa.string(),
    "rejected_model": pa.string(),
    "labeler": pa.string(),
    "margin": pa.float32(),
    "p_chosen": pa.float64(),
    "tags": pa.string(),
}
_FEATURES = {
    name: {"_type": "Image"}
    if kind == _IMAGE
    else {"dtype": {"float": "float32", "double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
    for name, kind in _COLUMNS.items()
}
SCHEMA = pa.schema(list(_COLUMNS.items()), {"huggingface": json.dumps({"info": {"features": _FEATURES}})})


def write_datasets(folder: Path, rows: pa.Table, store: PairStore) -> None:
    write_parquet(folder, rows, store, SCHEMA, _columns)


def _columns(row: dict[str, Any], a: bytes, b: bytes) -> dict[str, Any]:
    chosen, rejected = chosen_and_rejected(row, a, b)
    return label_columns(row) | {"chosen": {"bytes": chosen}, "rejected": {"bytes": rejected}}


def label_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a label other than its images, under the names that an import knows."""
    models = (row["model_a"], row["model_b"])
    chosen_model, rejected_model = models if row["choice"] == "a" else models[::-1]
    return {"chosen_model": chosen_model, "rejected_model": rejected_model} | {
        name: row[name] for name in ("pair_id", "prompt", "labeler", "margin", "p_chosen", "tags")
    }
