"""The folder of a training run: its tables, and how a result gets into it."""

import csv
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ...core.errors import UsageError, cannot_write
from ...core.files import sync_folder, write_atomic
from ...core.hashing import RESULT_FILE
from ..checkpoint import write_error
from ..export.readme import README, is_our_readme
from .mark import follow_umask
from .ownership import as_noted, note_of, read_note, remove_owned, write_note


def add_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Append to a CSV table, with a header where it is new."""
    fresh = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def cut_table(path: Path, step: int) -> None:
    """Drop the rows of a table after a step: they will be made again. One that was cut off in writing goes too."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= step]
        write_atomic(path, "".join(kept).encode())


def sync_file(path: Path) -> None:
    """Have a file on disk, if there is one."""
    if path.exists():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A folder whose files are moved into `output` when the block ends well; the file that says it is finished last.

    The files of an earlier result go; what somebody else put there stays.

    Raises:
        UsageError: where one of the files would take the place of somebody else's.
        PrefloopError: where they cannot be written.
    """
    folder = output / ".result.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        yield folder
        _move_into(output, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = write_error(error)
        if cause is None:
            raise
        raise cannot_write(output, cause) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into(output: Path, folder: Path) -> None:
    follow_umask(folder)
    if (output / README).exists() and not is_our_readme(output / README):
        print(f"{output / README} is not as train wrote it and stays; the model card is left out", file=sys.stderr)
        (folder / README).unlink(missing_ok=True)
    before, after = read_note(output), note_of(folder)
    for name in after.keys() - {README}:
        path = output / name
        if os.path.lexists(path) and not any(as_noted(path, note[name]) for note in (before, after) if name in note):
            raise UsageError(f"{path} is not as train wrote it; move it away, and the same command goes on")
    for path in [*folder.rglob("*"), folder]:
        (sync_folder if path.is_dir() else sync_file)(path)
    # what is between the old result and the new one bears no name of a result
    (output / RESULT_FILE).unlink(missing_ok=True)
    remove_owned(output, [name for name in before if as_noted(output / name, before[name])])
    write_note(output, after)
    for name in sorted(after, key=lambda name: (name == RESULT_FILE, name)):
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name == RESULT_FILE:
            for part in {(output / other).parent for other in after}:
                sync_folder(part)
        os.replace(folder / name, target)
    sync_folder(output)
