"""The folder of a training run: what may be begun in it, its tables, and how a result gets into it."""

import csv
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..store import UsageError
from ..store.models import RESULT_FILE
from .config import TrainConfig

_OWN = ("checkpoint-", ".", "metrics", "validation", "training", "samples", "logs")


def refuse_finished(output: Path, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    """
    Raises:
        UsageError: where the folder holds a finished run and neither flag is given, or something else.
    """
    result = output / RESULT_FILE
    if overwrite:
        for path in output.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif result.exists():
        done = json.loads(result.read_text())
        if not resume:
            raise UsageError(
                f"{output} holds a finished run of {done['steps']} steps; give --resume, --overwrite or another folder"
            )
        if done["steps"] >= config.max_train_steps:
            raise UsageError(
                f"nothing to do: the run in {output} has done {done['steps']} steps; raise --max-train-steps"
            )
    elif any(path.name != ".lock" and not path.name.startswith(_OWN) for path in output.iterdir()):
        raise UsageError(f"{output} is not empty and holds no run; name another folder, or give --overwrite")


def add_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Append to a CSV table, with a header where it is new."""
    fresh = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def cut_table(path: Path, step: int) -> None:
    """Drop the rows of a table after a step: they will be made again."""
    if path.exists():
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *(line for line in lines[1:] if int(line.split(",")[0]) <= step)]) + "\n")


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A folder whose content is moved into `output` when the block ends well; the file that says it is finished last."""
    folder = output / ".result.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RESULT_FILE):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    folder.rmdir()
