"""Parts of the journal as they are on disk: whether they are what was written, and which of them are gone."""

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
    """What the end of a part tells."""

    n_rows: int
    replaced: list[str]
    """Parts whose rows this one holds, since the journal was compacted."""


def footer(path: Path) -> Footer:
    metadata = pq.read_metadata(path)
    packed = (metadata.metadata or {}).get(REPLACED.encode())
    replaced = zlib.decompress(base64.b64decode(packed)).decode().split("\n") if packed else []
    return Footer(metadata.num_rows, replaced)


def missing(folder: Path, listed: Iterable[str], found: Collection[str]) -> list[str]:
    """Names of parts that are listed, but are neither found nor replaced by one that is found.

    Raises:
        IntegrityError: where found parts are damaged, so that nobody can tell.
    """
    gone = set(listed).difference(found)
    if gone:
        refuse_damaged(folder, found)
        for name in found:
            gone.difference_update(footer(folder / name).replaced)
    return sorted(gone)


def has_checksum(name: str) -> bool:
    """Parts that an earlier prefloop wrote have none."""
    return len(_in_name(name)) == CHECKSUM_LENGTH


def damage(path: Path) -> str | None:
    """Why a part cannot be what was written; None where it can. Without a checksum, whether it can be read at all."""
    try:
        if not has_checksum(path.name):
            deque(pq.ParquetFile(path).iter_batches(), 0)
            return None
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()[:CHECKSUM_LENGTH]
    except Exception as error:  # what Arrow raises over a damaged file is of no common kind
        return str(error).strip().split("\n")[0]
    return None if found == _in_name(path.name) else "its checksum is not the one in its name"


def refuse_damaged(folder: Path, names: Iterable[str]) -> None:
    """Raises:
    IntegrityError: where parts have changed since they were written; it names them.
    """
    found = {name: reason for name in names if (reason := damage(folder / name))}
    if found:
        name, reason = next(iter(found.items()))
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise IntegrityError(
            f"{folder / name}{more} has changed since it was written ({reason}); bring it back from a backup, or move "
            f"it to another folder and run `prefloop store rebuild --allow-missing --store {folder.parent}` to go on "
            "without its rows"
        )


def _in_name(name: str) -> str:
    return name.removesuffix(".parquet").rsplit("-", 1)[-1]
