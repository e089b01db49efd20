"""The sha256 of files and folders; a file that has not changed is not read again."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from .errors import WriteError
from .files import write_atomic
from .ids import canonical, content_id

REMEMBERED_FROM = 64 << 20  # bytes; hashing 4 GB takes seconds
RESULT_FILE = "prefloop.json"  # what `train` leaves beside its weights: base model, labels, settings
_SETTLED = 2_000_000_000  # ns; a file just written may change again within the clock's tick
_WEIGHTS = (".safetensors", ".json", ".bin", ".txt")
_known: dict[str, str] = {}  # of this process


def sha256(path: Path) -> str:
    """The hash of a file's bytes, as hex, remembered while its size and times stay the same; of a large file, on disk too."""
    state = path.stat()
    entry = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
    if entry in _known:
        return _known[entry]
    memory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prefloop" / "sha256"
    note = memory / hashlib.sha256(entry.encode()).hexdigest()
    large = state.st_size >= REMEMBERED_FROM
    found = _remembered(note, entry) if large else None
    if found is None:
        found = _hashed(path)
        if time.time_ns() - state.st_mtime_ns <= _SETTLED:
            return found
        if large:
            with suppress(OSError, WriteError):  # a memory that cannot be kept costs seconds, no more
                memory.mkdir(parents=True, exist_ok=True)
                write_atomic(note, f"{found} {_proof(entry, found)}".encode(), sync_name=False)
    _known[entry] = found
    return found


def _remembered(note: Path, entry: str) -> str | None:
    """The hash that a note tells; None where there is none, or it was cut or changed, since it decides an identity."""
    with suppress(OSError, ValueError):
        found, proof = note.read_text().split(" ")
        if proof == _proof(entry, found):
            return found
    return None


def _proof(entry: str, found: str) -> str:
    return hashlib.sha256(f"{entry}\n{found}".encode()).hexdigest()[:12]


def _hashed(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The hashes of the weights and settings below a model's folder, by their paths in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith((".", "checkpoint")) for part in relative.parts)
        if not hidden and path.suffix in _WEIGHTS and path.name != RESULT_FILE and path.is_file():
            found[relative.as_posix()] = sha256(path)
    return found


def fingerprint(folder: Path) -> UUID:
    """An id of the names and bytes of the weights and settings below a folder, whatever its own name."""
    return content_id(canonical(digests(folder)).encode())
