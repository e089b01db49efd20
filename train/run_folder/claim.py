"""What a run may begin in a folder, and what becomes of the run that was there: it stays until the new one has a checkpoint."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import IntegrityError, UsageError, cannot_write
from ...core.hashing import RESULT_FILE
from ...core.locks import locked
from ..checkpoint import MANIFEST, newest_first
from ..config import TrainConfig
from ..export.readme import README, is_our_readme
from .kept_pairs import forget_pairs
from .mark import read_mark, write_mark
from .ownership import owned, read_note, remove_owned, run_files, tops

_PREVIOUS = ".previous"
_MOVING = ".previous.tmp"  # being moved there, or back
_LEAST = 1 << 20  # bytes, about those of the smallest checkpoint


@contextmanager
def claimed(output: Path, config: TrainConfig, resume: bool, overwrite: bool, n_bytes: int = 0) -> Iterator[None]:
    """Hold the folder for the length of a run.

    Args:
        n_bytes: what a checkpoint takes at least; refused at once where the disk has less.

    Raises:
        UsageError: where the folder holds a finished run and neither flag is given, a run with other settings, or something
            else, or where overwriting would remove what is not ours.
        PrefloopError: where the folder cannot be made or written, or the disk is full.
    """
    made = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(output).free < max(n_bytes, _LEAST):
            raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        _unmake(output, made)
        full = error.errno == errno.ENOSPC
        raise cannot_write(output, error, max(n_bytes, _LEAST) if full else None) from error
    try:
        with locked(output / ".lock", f"the training run {output}"):
            try:
                _begin(output, config, resume, overwrite)
                yield
            finally:
                recover(output)
    finally:
        _unmake(output, made)


def _unmake(output: Path, made: bool) -> None:
    """Remove a folder that was made for a run that never began."""
    if made and output.is_dir() and {path.name for path in output.iterdir()} <= {".lock"}:
        (output / ".lock").unlink(missing_ok=True)
        output.rmdir()


def _begin(output: Path, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    recover(output)
    if overwrite and not _is_free(output):
        _refuse_overwriting(output)
        _set_aside(output)
    elif (output / RESULT_FILE).exists():
        _refuse_finished(output, config, resume)
    elif not _is_free(output) and begun_with(output) is None:
        raise UsageError(f"{output} is not empty and holds no run; name another folder")
    if not newest_first(output):
        write_mark(output, config=config.identity())
        forget_pairs(output)
    elif begun_with(output) != config.identity():
        raise UsageError(other_settings(output))


def begun_with(output: Path) -> str | None:
    """The identity of the settings of the run in the folder; None where there is no run."""
    mark = read_mark(output)
    if mark is not None:
        return mark.get("config")
    for checkpoint in newest_first(output):
        try:
            return json.loads((checkpoint / MANIFEST).read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _is_free(output: Path) -> bool:
    return read_mark(output) is None and all(path.name.startswith(".") for path in output.iterdir())


def _refuse_finished(output: Path, config: TrainConfig, resume: bool) -> None:
    result = output / RESULT_FILE
    try:
        done = int(json.loads(result.read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{result} cannot be read; name another folder") from error
    if not resume:
        raise UsageError(f"{output} holds a finished run of {done} steps; give --resume, or {other_ways(output)}")
    if done >= config.max_train_steps:
        raise UsageError(f"nothing to do: the run in {output} has done {done} steps; raise --max-train-steps")
    if not newest_first(output):
        raise UsageError(f"{output} holds no checkpoint from which to go on; give {other_ways(output)}")


# Overwriting: the old run's own files go aside, its result stays in its place, until the new run has a checkpoint


def other_settings(output: Path) -> str:
    """The error for a run that these settings do not resume; those that an earlier version recorded never match."""
    return (
        f"{output} holds a run with other settings, or of an earlier version of prefloop; "
        f"repeat its settings, or give {other_ways(output)}"
    )


def other_ways(output: Path) -> str:
    """The other ways on, for a message: --overwrite only where it would not be refused."""
    try:
        _refuse_overwriting(output, by_hash=False)
    except UsageError:
        return "another folder"
    return "--overwrite or another folder"


def _refuse_overwriting(output: Path, by_hash: bool = True) -> None:
    place = output.resolve()
    for name, folder in (("current", Path.cwd()), ("home", Path.home())):
        if place in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(f"--overwrite is not for the {name} folder or one above it: {output}; name another folder")
    if read_mark(output) is None:
        raise UsageError(
            f"no run of train began in {output}, so --overwrite removes nothing there; name another folder"
        )
    _, others = owned(output, by_hash=by_hash)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UsageError(
            f"--overwrite removes only what train wrote, but {output} also holds {', '.join(others[:3])}{more}; "
            "move them away, or name another folder"
        )


def _set_aside(output: Path) -> None:
    ours, _ = owned(output, by_hash=False)
    staying = tops([RESULT_FILE, README, ".lock", *read_note(output)])
    moving = output / _MOVING
    moving.mkdir()
    for name in sorted(tops(ours) - staying):
        (output / name).rename(moving / name)
    moving.rename(output / _PREVIOUS)


def recover(output: Path) -> None:
    """Bring the folder into order: the old run back where the new one has no checkpoint, away where it has."""
    moving, previous = output / _MOVING, output / _PREVIOUS
    if moving.is_dir():
        _move_back(moving, output)
    if not previous.is_dir():
        return
    if newest_first(output):
        drop_previous(output)
        return
    remove_owned(output, [name for name in run_files(output) if name != ".lock"])
    previous.rename(moving)
    _move_back(moving, output)


def _move_back(moving: Path, output: Path) -> None:
    for path in sorted(moving.iterdir()):
        path.rename(output / path.name)
    moving.rmdir()


def drop_previous(output: Path) -> None:
    """Remove the result and the files of the run that was overwritten, if there was one: the new one has a checkpoint."""
    previous = output / _PREVIOUS
    if not previous.is_dir():
        return
    (output / RESULT_FILE).unlink(missing_ok=True)  # first: what is left is no result
    noted = read_note(previous)
    remove_owned(output, [name for name, (n, _) in noted.items() if _size(output / name) == n])
    if is_our_readme(output / README):
        (output / README).unlink()
    remove_owned(previous, owned(previous, by_hash=False)[0])
    if all(path.is_dir() and not path.is_symlink() for path in previous.rglob("*")):
        shutil.rmtree(previous)  # empty folders alone


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None
