"""Move a finished result into the folder of its run, in place of an earlier one."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...core.errors import UsageError, cannot_write
from ...core.files import sync_folder
from ...core.hashing import RESULT_FILE
from ..checkpoint import write_error
from .files import follow_umask, sync_file
from .ownership import describe_files, is_unmodified, read_result_files, remove_files, write_result_files
from .readme import README, is_our_readme


@contextmanager
def publish(output: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into `output` when the block ends; prefloop.json comes last.

    The files of an earlier result are removed; files that train did not write stay.

    Raises:
        UsageError: if a file that train did not write has the name of one of the result's.
        PrefloopError: if the files cannot be written.
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
        print(f"{output / README} was written or edited by somebody else; no model card is written", file=sys.stderr)
        (folder / README).unlink(missing_ok=True)
    before, after = read_result_files(output), describe_files(folder)
    for name in after.keys() - {README}:
        path = output / name
        recorded = [files[name] for files in (before, after) if name in files]
        if os.path.lexists(path) and not any(is_unmodified(path, record) for record in recorded):
            raise UsageError(
                f"{path} was not written by train, or has changed; move it away and run the same command again"
            )
    for path in [*folder.rglob("*"), folder]:
        (sync_folder if path.is_dir() else sync_file)(path)
    # without prefloop.json, a mix of the old result and the new one is not taken for a result
    (output / RESULT_FILE).unlink(missing_ok=True)
    remove_files(output, [name for name in before if is_unmodified(output / name, before[name])])
    write_result_files(output, after)
    for name in sorted(after, key=lambda name: (name == RESULT_FILE, name)):
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name == RESULT_FILE:
            for part in {(output / other).parent for other in after}:
                sync_folder(part)
        os.replace(folder / name, target)
    sync_folder(output)
