"""Hold the folder of a run while it trains, if the run may begin or go on there."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ...core.errors import IntegrityError, UsageError, cannot_write
from ...core.hashing import RESULT_FILE
from ...core.locks import locked
from ..checkpoint import MANIFEST, newest_first, steps_of
from ..config import TrainConfig
from ..distributed import several_processes
from .choices import forget_choices
from .marker import read_marker, write_marker
from .overwrite import alternatives, other_settings, recover, refuse_overwriting, set_aside, was_interrupted
from .saved_pairs import delete_pairs

_MIN_FREE = 1 << 20  # bytes, about those of the smallest checkpoint


@contextmanager
def claim_folder(output: Path, config: TrainConfig, resume: bool, overwrite: bool, n_bytes: int = 0) -> Iterator[None]:
    """Hold the folder for the duration of the block.

    Args:
        n_bytes: minimum size of a checkpoint; refused at once if the disk has less.

    Raises:
        UsageError: if the folder holds a finished run and neither flag is given, a run with other settings, or something
            else, or if overwriting would remove files that train did not write.
        PrefloopError: if the folder cannot be created or written, or the disk is full.
    """
    is_new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(output).free < max(n_bytes, _MIN_FREE):
            raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        _remove_if_unused(output, is_new)
        full = error.errno == errno.ENOSPC
        raise cannot_write(output, error, max(n_bytes, _MIN_FREE) if full else None) from error
    try:
        with locked(output / ".lock", _name(output)):
            try:
                _begin(output, config, resume, overwrite)
                yield
            finally:
                recover(output)
    finally:
        _remove_if_unused(output, is_new)


def _remove_if_unused(output: Path, is_new: bool) -> None:
    """Remove a folder that was created for a run that never began."""
    if is_new and output.is_dir() and {path.name for path in output.iterdir()} <= {".lock"}:
        (output / ".lock").unlink(missing_ok=True)
        output.rmdir()


def refuse_early(output: Path, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    """Refuse at once what `claim_folder` would refuse after seconds of imports. Nothing is created or changed.

    Raises:
        UsageError, IntegrityError: as `claim_folder`.
        BusyError: if another process trains in the folder.
    """
    if several_processes() or not output.is_dir():  # of several processes only the first may hold the folder
        return
    lock = output / ".lock"
    with locked(lock, _name(output)) if lock.exists() else nullcontext():
        if not was_interrupted(output):
            _refuse_occupied(output, config, resume, overwrite)


def _begin(output: Path, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    recover(output)
    _refuse_occupied(output, config, resume, overwrite)
    if overwrite and not _is_free(output):
        set_aside(output)
    if not newest_first(output):
        write_marker(output, config=config.identity())
        delete_pairs(output)
        forget_choices(output)


def _refuse_occupied(output: Path, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    if overwrite and not _is_free(output):
        refuse_overwriting(output)
        return
    if (output / RESULT_FILE).exists():
        _refuse_finished(output, config, resume)
    elif not _is_free(output) and run_identity(output) is None:
        raise UsageError(f"{output} is not empty and holds no run of train; name another folder")
    checkpoints = newest_first(output)
    if checkpoints and not config.continues(run_identity(output)):
        raise UsageError(other_settings(output))
    n_steps = steps_of(checkpoints[0]) if checkpoints else 0
    if n_steps > config.max_train_steps:
        raise UsageError(
            f"the run in {output} has done {n_steps} steps, more than --max-train-steps {config.max_train_steps}; raise it, or "
            f"give {alternatives(output)}"
        )


def _name(output: Path) -> str:
    return f"the training run {output}"


def run_identity(output: Path) -> str | None:
    """The identity of the settings of the run in the folder; None without a run."""
    marker = read_marker(output)
    if marker is not None:
        return marker.get("config")
    for checkpoint in newest_first(output):
        try:
            return json.loads((checkpoint / MANIFEST).read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _is_free(output: Path) -> bool:
    return read_marker(output) is None and all(path.name.startswith(".") for path in output.iterdir())


def _refuse_finished(output: Path, config: TrainConfig, resume: bool) -> None:
    result = output / RESULT_FILE
    try:
        n_steps = int(json.loads(result.read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{result} cannot be read; name another folder") from error
    if not resume:
        raise UsageError(f"{output} holds a finished run of {n_steps} steps; give --resume, or {alternatives(output)}")
    if n_steps >= config.max_train_steps:
        raise UsageError(f"nothing to do: the run in {output} has done {n_steps} steps; raise --max-train-steps")
    if not newest_first(output):
        raise UsageError(f"{output} holds no checkpoint to resume from; give {alternatives(output)}")
