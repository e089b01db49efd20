"""Only the labels, as CSV or JSON lines: pairs and images by their ids, ties and skips included."""

from pathlib import Path

import pyarrow as pa

from ..query import write

_COLUMNS = (
    *("pair_id", "labeler", "choice", "p_chosen", "margin", "prompt", "image_a", "image_b", "model_a", "model_b"),
    *("path_a", "path_b", "split", "source", "tags"),
)


def write_csv(folder: Path, rows: pa.Table) -> None:
    _write(folder / "labels.csv", rows, "csv")


def write_jsonl(folder: Path, rows: pa.Table) -> None:
    _write(folder / "labels.jsonl", rows, "jsonl")


def _write(path: Path, rows: pa.Table, format_: str) -> None:
    with open(path, "wb") as file:
        write(rows.select(_COLUMNS), format_, file)
