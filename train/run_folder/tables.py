"""The CSV tables of a run, which grow while it trains."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.files import write_atomic


def append_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Append to a CSV table; a new table gets a header first."""
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def truncate_table(path: Path, step: int) -> None:
    """Drop the rows after a step, which will be written again, and a last row that is incomplete."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= step]
        write_atomic(path, "".join(kept).encode())
