"""Which files of a folder a run of prefloop wrote, known by exact names and recorded hashes; all others are somebody else's."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...core.files import write_atomic
from ...core.hashing import RESULT_FILE
from ..checkpoint import MANIFEST, sha256
from .marker import RUN_DIR
from .readme import README, is_our_readme

_RECORD = "result.json"
_RUN_FILE = re.compile(
    r"\.lock"
    r"|\.run/(\.?)(run\.json|choices\.json|pairs\.parquet|result\.json|validation_reference\.safetensors)(\.\d+)?(\.tmp)?"
    r"|(metrics|validation)\.csv|training\.png|\.((metrics|validation)\.csv|training\.png)\.\d+\.tmp"
    r"|samples/((reference-\d+|step-\d{6,})\.png|\.(reference-\d+|step-\d{6,})\.png\.\d+\.tmp)"
    r"|logs/(.+/)?(events\.out\.tfevents\.[^/]+|hparams\.yml)"
    r"|\.checkpoint-\d+\.tmp/.+|\.result\.tmp/.+"
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def split_by_owner(output: Path, *, by_hash: bool = True) -> tuple[list[str], list[str]]:
    """The names of the files below the folder that a run of prefloop wrote, and those of all others.

    Args:
        by_hash: whether the files of a result must have their recorded hash, or only their size.
    """
    recorded, ours, others = read_result_files(output), [], []
    manifests: dict[str, set[str]] = {}
    for name in _names(output):
        top, _, below = name.partition("/")
        path = output / name
        if path.is_symlink() or not path.is_file():
            is_ours = False
        elif _CHECKPOINT.fullmatch(top) and below:
            if top not in manifests:
                manifests[top] = _in_manifest(output / top)
            is_ours = below in manifests[top]
        elif name == README:
            is_ours = is_our_readme(path)
        elif name in recorded:
            is_ours = is_unmodified(path, recorded[name], by_hash)
        else:
            is_ours = _RUN_FILE.fullmatch(name) is not None
        (ours if is_ours else others).append(name)
    return ours, others


def top_level(names: Iterable[str]) -> set[str]:
    """The first component of each path."""
    return {name.partition("/")[0] for name in names}


def run_files(output: Path) -> list[str]:
    """The names of the files that a run writes before its result."""
    return [name for name in _names(output) if _RUN_FILE.fullmatch(name) and not (output / name).is_symlink()]


def _names(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = sorted(set(folders) - set(links))
        for name in sorted(names + links):
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _in_manifest(checkpoint: Path) -> set[str]:
    try:
        return {MANIFEST, *json.loads((checkpoint / MANIFEST).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def remove_files(folder: Path, names: list[str]) -> None:
    """Remove files, then folders that are empty. The files that prove the others to be ours go last."""
    last = (RESULT_FILE, f"{RUN_DIR}/{_RECORD}", f"{RUN_DIR}/run.json")
    for name in sorted(names, key=lambda name: (name in last, name.endswith(f"/{MANIFEST}"), name)):
        (folder / name).unlink(missing_ok=True)
    parents = {parent for name in names for parent in (folder / name).parents if folder in parent.parents}
    for path in sorted(parents, key=lambda path: -len(path.parts)):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


# A result's files are named after the model's parts, so their names are recorded when they are written


def read_result_files(output: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and sha256 of each file that a finished run put into the folder, by name."""
    try:
        recorded = json.loads((output / RUN_DIR / _RECORD).read_text())
        return {name: (n_bytes, digest) for name, (n_bytes, digest) in recorded.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_result_files(output: Path, files: dict[str, tuple[int, str]]) -> None:
    write_atomic(output / RUN_DIR / _RECORD, json.dumps(files, indent=1).encode(), make_parent=True)


def describe_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and sha256 of each file below a folder, by name."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def is_unmodified(path: Path, recorded: tuple[int, str], by_hash: bool = True) -> bool:
    """Whether a file exists and has its recorded size and hash."""
    return path.is_file() and path.stat().st_size == recorded[0] and (not by_hash or sha256(path) == recorded[1])
