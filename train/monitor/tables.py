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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table as text; none where there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def column(rows: Rows, name: str) -> Floats:
    """One column as numbers, nan where a cell is absent or empty; (rows,)."""
    cells = (row.get(name) for row in rows)
    return np.array([math.nan if cell is None or cell == "" else float(cell) for cell in cells], np.float64)


def looks(validation: Rows) -> list[Mapping[str, Any]]:
    """The rows over all timesteps, one for each look at the held-out pairs."""
    return [row for row in validation if row["bin"] == "all"]


def error_changes(validation: Rows, name: str) -> Floats:
    """Change of an error against the reference's, or against the first row's where there is none; (rows,).

    Args:
        name: chosen_error or rejected_error.
    """
    error, reference = column(validation, name), column(validation, f"ref_{name}")
    return error / np.where(np.isfinite(reference), reference, error[:1]) - 1
