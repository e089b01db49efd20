"""Which files of a folder a run of ours wrote, by exact names and by what it noted; the rest is somebody else's."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...core.files import write_atomic
from ...core.hashing import RESULT_FILE
from ..checkpoint import MANIFEST, sha256
from ..export.readme import README, is_our_readme
from .mark import RUN

_NOTE = "result.json"
_RUN_FILE = re.compile(
    r"\.lock"
    r"|\.run/(\.?)(run\.json|pairs\.parquet|result\.json|validation_reference\.safetensors)(\.\d+)?(\.tmp)?"
    r"|(metrics|validation)\.csv|training\.png|\.((metrics|validation)\.csv|training\.png)\.\d+\.tmp"
    r"|samples/((reference-\d+|step-\d{6,})\.png|\.(reference-\d+|step-\d{6,})\.png\.\d+\.tmp)"
    r"|logs/(.+/)?(events\.out\.tfevents\.[^/]+|hparams\.yml)"
    r"|\.checkpoint-\d+\.tmp/.+|\.result\.tmp/.+"
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def owned(output: Path, *, by_hash: bool = True) -> tuple[list[str], list[str]]:
    """The names of the files that a run of ours wrote, and those of all others, below the folder.

    Args:
        by_hash: whether the files of a result must be those it wrote to the last byte; else by size.
    """
    noted, ours, others = read_note(output), [], []
    in_manifest: dict[str, set[str]] = {}
    for name in _names(output):
        top, _, rest = name.partition("/")
        path = output / name
        if path.is_symlink() or not path.is_file():
            known = False
        elif _CHECKPOINT.fullmatch(top) and rest:
            if top not in in_manifest:
                in_manifest[top] = _in_manifest(output / top)
            known = rest in in_manifest[top]
        elif name == README:
            known = is_our_readme(path)
        elif name in noted:
            known = as_noted(path, noted[name], by_hash)
        else:
            known = _RUN_FILE.fullmatch(name) is not None
        (ours if known else others).append(name)
    return ours, others


def tops(names: Iterable[str]) -> set[str]:
    """The first parts of paths: what lies in the folder itself."""
    return {name.partition("/")[0] for name in names}


def run_files(output: Path) -> list[str]:
    """The names of the files that a run writes before its result."""
    return [name for name in _names(output) if _RUN_FILE.fullmatch(name) and not (output / name).is_symlink()]


def _names(folder: Path) -> Iterator[str]:
    for where, folders, names in os.walk(folder):
        here = Path(where)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(set(folders) - set(links))
        for name in sorted(names + links):
            yield (here / name).relative_to(folder).as_posix()


def _in_manifest(checkpoint: Path) -> set[str]:
    try:
        return {MANIFEST, *json.loads((checkpoint / MANIFEST).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def remove_owned(folder: Path, names: list[str]) -> None:
    """Remove those files, those last by which the others are known to be ours, then the folders that are empty."""
    last = (RESULT_FILE, f"{RUN}/{_NOTE}", f"{RUN}/run.json")
    for name in sorted(names, key=lambda name: (name in last, name.endswith(f"/{MANIFEST}"), name)):
        (folder / name).unlink(missing_ok=True)
    emptied = {parent for name in names for parent in (folder / name).parents if folder in parent.parents}
    for path in sorted(emptied, key=lambda path: -len(path.parts)):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


# The result: its names are those of the model's parts, so they are noted when they are written


def read_note(output: Path) -> dict[str, tuple[int, str]]:
    """Name → bytes and sha256 of the files that a finished run put into the folder."""
    try:
        noted = json.loads((output / RUN / _NOTE).read_text())
        return {name: (n_bytes, digest) for name, (n_bytes, digest) in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_note(output: Path, noted: dict[str, tuple[int, str]]) -> None:
    write_atomic(output / RUN / _NOTE, json.dumps(noted, indent=1).encode(), make_parent=True)


def note_of(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def as_noted(path: Path, noted: tuple[int, str], by_hash: bool = True) -> bool:
    """Whether a file is there and as it was written."""
    return path.is_file() and path.stat().st_size == noted[0] and (not by_hash or sha256(path) == noted[1])
