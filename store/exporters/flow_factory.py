"""Flow-Factory's records for offline DPO (schema version 2): train.jsonl, and each image once under images/."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...core.text import json_text
from ..images import format_of
from ..pairstore import PairStore
from .hf_datasets import label_columns
from .select import with_images
from .shards import slices

_ROWS = 256


def write_flow_factory(folder: Path, rows: pa.Table, store: PairStore) -> None:
    (folder / "images").mkdir()
    with open(folder / "train.jsonl", "w", encoding="utf-8", newline="\n") as manifest:
        for part in slices(rows, _ROWS):
            for row, a, b in with_images(store, part):
                images = _write_image(folder, row["image_a"], a), _write_image(folder, row["image_b"], b)
                chosen, rejected = images if row["choice"] == "a" else images[::-1]
                manifest.write(json_text(_record(row, chosen, rejected)) + "\n")


def _write_image(folder: Path, identity: str, data: bytes) -> str:
    """The path below the folder; an image of several pairs is written once."""
    name = f"images/{identity}.{format_of(data)}"
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name


def _record(row: dict[str, Any], chosen: str, rejected: str) -> dict[str, Any]:
    """Flow-Factory refuses keys that it does not know; metadata may hold any."""
    columns = label_columns(row) | {"tags": json.loads(row["tags"] or "{}") or None, "split": row["split"]}
    return {
        "schema_version": 2,
        "input": {"prompt": columns.pop("prompt"), "media": []},
        "supervision": {"type": "preference", "chosen": _candidate(chosen), "rejected": _candidate(rejected)},
        "metadata": {name: value for name, value in columns.items() if value is not None},
    }


def _candidate(path: str) -> dict[str, Any]:
    return {"media": [{"type": "image", "path": path}]}
