"""The tables of a run, as rows and columns."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Mapping[str, Any]]  # text or numbers; `bin` is "all" or the number of a timestep bin
Floats = NDArray[np.float64]

_RENAMED = {  # columns that version 0.1 wrote
    "low": "implicit_accuracy_low",
    "high": "implicit_accuracy_high",
    "gradient_left": "dpo_weight",
    "chosen_error_change": "chosen_error_delta",
    "rejected_error_change": "rejected_error_delta",
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table as text, with today's column names; empty if the file does not exist."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{_RENAMED.get(name, name): cell for name, cell in row.items()} for row in csv.DictReader(file)]


def number(cell: Any) -> float:
    """A cell as a number, nan if it is absent or empty."""
    return math.nan if cell is None or cell == "" else float(cell)


def column(rows: Rows, name: str) -> Floats:
    """One column as numbers; (rows,)."""
    return np.array([number(row.get(name)) for row in rows], np.float64)


def validation_passes(validation: Rows) -> list[Mapping[str, Any]]:
    """The rows over all timesteps, one for each validation pass."""
    return [row for row in validation if row["bin"] == "all"]


def error_changes(validation: Rows, name: str) -> Floats:
    """Change of an error relative to the reference's, or to the first row's without a reference; (rows,).

    Args:
        name: chosen_error or rejected_error.
    """
    error, reference = column(validation, name), column(validation, f"ref_{name}")
    return error / np.where(np.isfinite(reference), reference, error[:1]) - 1
