"""Journal parts on disk: what their footers say, whether they are intact, and which are missing."""

import base64
import hashlib
import zlib
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ..core.errors import IntegrityError
from .journal import CHECKSUM_LENGTH, REPLACED


@dataclass(frozen=True)
class Footer:
    """What the footer of a part says."""

    n_rows: int
    columns: frozenset[str]
    replaced: list[str]
    """Parts whose rows this part holds, since a compaction."""


def footer(path: Path) -> Footer:
    metadata = pq.read_metadata(path)
    packed = (metadata.metadata or {}).get(REPLACED.encode())
    replaced = zlib.decompress(base64.b64decode(packed)).decode().split("\n") if packed else []
    return Footer(metadata.num_rows, frozenset(metadata.schema.names), replaced)


def missing(folder: Path, listed: Iterable[str], present: Collection[str]) -> list[str]:
    """Names of parts that are listed, but are neither present nor replaced by a part that is present.

    Raises:
        IntegrityError: if present parts are damaged, so that it cannot be known.
    """
    gone = set(listed).difference(present)
    if gone:
        refuse_damaged(folder, present)
        for name in present:
            gone.difference_update(footer(folder / name).replaced)
    return sorted(gone)


def has_checksum(name: str) -> bool:
    """Whether the name holds the checksum; in the first parts that prefloop 0.1 wrote it does not."""
    return len(_in_name(name)) == CHECKSUM_LENGTH


def damage(path: Path) -> str | None:
    """Why a part is not what was written, or None. A part without a checksum only has to be readable."""
    try:
        if not has_checksum(path.name):
            deque(pq.ParquetFile(path).iter_batches(), 0)
            return None
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:CHECKSUM_LENGTH]
    except Exception as error:  # what Arrow raises for a damaged file has no common base class
        return str(error).strip().split("\n")[0]
    return None if digest == _in_name(path.name) else "its checksum is not the one in its name"


def refuse_damaged(folder: Path, names: Iterable[str]) -> None:
    """Raises:
    IntegrityError: if parts have changed since they were written; it names them.
    """
    damaged = {name: reason for name in names if (reason := damage(folder / name))}
    if damaged:
        name, reason = next(iter(damaged.items()))
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise IntegrityError(
            f"{folder / name}{more} has changed since it was written ({reason}); restore it from a backup, or move "
            f"it to another folder and run `prefloop store rebuild --allow-missing --store {folder.parent}` to continue "
            "without its rows"
        )


def _in_name(name: str) -> str:
    return name.removesuffix(".parquet").rsplit("-", 1)[-1]
