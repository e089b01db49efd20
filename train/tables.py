"""The tables of a run, as rows, and what can be read off the looks at the held-out pairs."""

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


def best_step(validation: Rows) -> int | None:
    """The step of the earliest look with the highest held-out implicit accuracy; under sft, with the lowest chosen error.

    None where no look shows either.
    """
    rows = looks(validation)
    values = merits(rows)
    return None if np.isnan(values).all() else int(column(rows, "step")[np.nanargmax(values)])


def should_stop(validation: Rows, patience: int) -> bool:
    """Whether none of the last `patience` looks was better than the best one before them.

    The look at step 0 counts: a model that stays below its reference is stopped too.
    """
    if patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience}")
    values = merits(looks(validation))
    values = values[np.isfinite(values)]
    return len(values) > patience and bool(values[-patience:].max() <= values[:-patience].max())


def merits(rows: Rows) -> Floats:
    """Higher is better: held-out implicit accuracy, or how far the chosen error fell where there is no accuracy."""
    accuracy = column(rows, "implicit_accuracy")
    trained = column(rows, "step") > 0  # at step 0 a run without preferences may say 1/2 too
    return -error_changes(rows, "chosen_error") if np.isnan(accuracy[trained]).all() else accuracy
