"""The sha256 of files and folders. An unchanged file is not read again."""

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from .errors import WriteError
from .files import user_cache, write_atomic
from .ids import canonical, content_id

REMEMBERED_FROM = 64 << 20  # bytes; hashing 4 GB takes seconds
RESULT_FILE = "prefloop.json"  # written by `train` beside its weights: base model, labels, settings
_STABLE_AFTER = 2_000_000_000  # ns; a new file may change again within the same clock tick
_WEIGHTS = (".safetensors", ".json", ".bin", ".txt")
_known: dict[str, str] = {}  # hashes computed by this process


def sha256(path: Path) -> str:
    """The hash of a file's bytes, as hex, remembered while its size and times stay the same; for large files also on disk."""
    state = path.stat()
    entry = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
    if entry in _known:
        return _known[entry]
    memory = user_cache() / "sha256"
    note = memory / hashlib.sha256(entry.encode()).hexdigest()
    large = state.st_size >= REMEMBERED_FROM
    digest = _remembered(note, entry) if large else None
    if digest is None:
        digest = _hashed(path)
        if time.time_ns() - state.st_mtime_ns <= _STABLE_AFTER:
            return digest
        if large:
            with suppress(OSError, WriteError):  # without it, the next process takes some seconds longer
                memory.mkdir(parents=True, exist_ok=True)
                write_atomic(note, f"{digest} {_proof(entry, digest)}".encode(), sync_name=False)
    _known[entry] = digest
    return digest


def _remembered(note: Path, entry: str) -> str | None:
    """The hash in a note; None if it does not exist, or was truncated or changed, since the hash decides an identity."""
    with suppress(OSError, ValueError):
        digest, proof = note.read_text().split(" ")
        if proof == _proof(entry, digest):
            return digest
    return None


def _proof(entry: str, digest: str) -> str:
    return hashlib.sha256(f"{entry}\n{digest}".encode()).hexdigest()[:12]


def _hashed(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Path in a model's folder → hash, for its weights and settings."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith((".", "checkpoint")) for part in relative.parts)
        if not hidden and path.suffix in _WEIGHTS and path.name != RESULT_FILE and path.is_file():
            hashes[relative.as_posix()] = sha256(path)
    return hashes


def fingerprint(folder: Path) -> UUID:
    """An id of the names and bytes of the weights and settings in a folder, independent of its own name."""
    return content_id(canonical(digests(folder)).encode())
