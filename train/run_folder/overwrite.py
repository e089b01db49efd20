"""Overwrite a run: its own files are set aside and its result stays in place until the new run has a checkpoint."""

import shutil
from pathlib import Path

from ...core.errors import UsageError
from ...core.hashing import RESULT_FILE
from ..checkpoint import newest_first
from .marker import read_marker
from .ownership import read_result_files, remove_files, run_files, split_by_owner, top_level
from .readme import README, is_our_readme

_PREVIOUS = ".previous"
_MOVING = ".previous.tmp"  # while files are moved there, or back


def alternatives(output: Path) -> str:
    """For error messages: "another folder", and --overwrite if it would be allowed."""
    try:
        refuse_overwriting(output, by_hash=False)
    except UsageError:
        return "another folder"
    return "--overwrite or another folder"


def other_settings(output: Path) -> str:
    """The error for a run that these settings do not resume; those that an earlier version recorded never match."""
    return (
        f"{output} holds a run with other settings, or of an earlier version of prefloop; "
        f"repeat its settings, or give {alternatives(output)}"
    )


def refuse_overwriting(output: Path, by_hash: bool = True) -> None:
    """
    Raises:
        UsageError: if the folder holds anything that train did not write, or is the current or home folder or above it.
    """
    resolved = output.resolve()
    for name, folder in (("current", Path.cwd()), ("home", Path.home())):
        if resolved in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(f"--overwrite refuses the {name} folder and those above it: {output}; name another folder")
    if read_marker(output) is None:
        raise UsageError(
            f"no run of train began in {output}, so --overwrite removes nothing there; name another folder"
        )
    _, others = split_by_owner(output, by_hash=by_hash)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UsageError(
            f"--overwrite removes only what train wrote, but {output} also holds {', '.join(others[:3])}{more}; "
            "move them away, or name another folder"
        )


def set_aside(output: Path) -> None:
    """Move the files of a run, except its result, out of the way."""
    ours, _ = split_by_owner(output, by_hash=False)
    staying = top_level([RESULT_FILE, README, ".lock", *read_result_files(output)])
    moving = output / _MOVING
    moving.mkdir()
    for name in sorted(top_level(ours) - staying):
        (output / name).rename(moving / name)
    moving.rename(output / _PREVIOUS)


def was_interrupted(output: Path) -> bool:
    """Whether a run that overwrites another ended before its first checkpoint, so that `recover` has something to do."""
    return (output / _MOVING).is_dir() or (output / _PREVIOUS).is_dir()


def recover(output: Path) -> None:
    """Restore the old run if the new one has no checkpoint; remove it if the new one has."""
    moving, previous = output / _MOVING, output / _PREVIOUS
    if moving.is_dir():
        _move_back(moving, output)
    if not previous.is_dir():
        return
    if newest_first(output):
        drop_previous(output)
        return
    remove_files(output, [name for name in run_files(output) if name != ".lock"])
    previous.rename(moving)
    _move_back(moving, output)


def _move_back(moving: Path, output: Path) -> None:
    for path in sorted(moving.iterdir()):
        path.rename(output / path.name)
    moving.rmdir()


def drop_previous(output: Path) -> None:
    """Remove the result and the files of an overwritten run, if there was one: the new run has a checkpoint."""
    previous = output / _PREVIOUS
    if not previous.is_dir():
        return
    (output / RESULT_FILE).unlink(missing_ok=True)  # first: without it the folder is not a result
    recorded = read_result_files(previous)
    remove_files(output, [name for name, (n_bytes, _) in recorded.items() if _size(output / name) == n_bytes])
    if is_our_readme(output / README):
        (output / README).unlink()
    remove_files(previous, split_by_owner(previous, by_hash=False)[0])
    if all(path.is_dir() and not path.is_symlink() for path in previous.rglob("*")):
        shutil.rmtree(previous)  # only empty folders are left


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None
