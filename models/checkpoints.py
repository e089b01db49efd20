"""The checkpoints of a training run, as models."""

import re
from pathlib import Path

from ..core.hashing import RESULT_FILE
from .lineage import MANIFEST, read_result
from .model import Model

BEST = "checkpoint-best"
"""Folder in that of a training run: the best of its checkpoints, by a sweep."""
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a checkpoint inside the folder of a finished training run."""
    return (
        _CHECKPOINT.fullmatch(folder.name) is not None
        and (folder / MANIFEST).is_file()
        and not (folder / RESULT_FILE).exists()
        and (folder.parent / RESULT_FILE).is_file()
    )


def best_checkpoint(model: Model) -> Path | None:
    """Where a sweep kept a better checkpoint of a training run than its result; None if it did not find one."""
    best = Path(model.source) / BEST
    record = read_result(best) if best.is_dir() else None
    if record is None or record.get("steps") == (model.trained_with or {}).get("steps"):
        return None
    return best
