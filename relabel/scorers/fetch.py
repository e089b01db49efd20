"""Download the official weights of scorers."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import UsageError, WriteError
from ...core.files import user_cache
from ...core.text import size
from .availability import availability
from .sources import MissingWeights, Source, offline, sources_of


@dataclass(frozen=True)
class Needed:
    """`dataclasses.asdict` turns it into JSON."""

    scorer: str
    name: str
    """owner/name or owner/name/file of the hub, or a file of another server."""
    n_bytes: int | None
    """None if it is not known."""
    path: str | None
    """Where it is on this machine; None if it is not there."""


def needed(names: Sequence[str]) -> list[Needed]:
    """What scorers read if no checkpoint is given, each source once.

    Raises:
        UsageError: if a scorer has no official weights, or is not known.
    """
    items: dict[str, Needed] = {}
    for name in names:
        for source in _sources(name):
            path = source.local()
            items.setdefault(
                source.name, Needed(name, source.name, source.n_bytes, None if path is None else str(path))
            )
    return list(items.values())


def _sources(name: str) -> list[Source]:
    sources = sources_of(name)
    if not sources:
        scorer = availability(name)
        why = {
            "unknown": "does not say what it reads",
            "endpoint": f"runs on a server: {scorer.cure}",
        }.get(scorer.weights, "needs no weights")
        raise UsageError(f"{name} {why}; there is nothing to fetch")
    return sources


def download_all(items: Sequence[Needed]) -> None:
    """Download what is missing; what is complete already stays if a later one fails.

    Raises:
        MissingWeights: if nothing can be downloaded now.
        WriteError: if the disk has less free than is known to be needed.
        PrefloopError, IntegrityError: as `Source.fetch`.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    missing = [item for item in items if item.path is None]
    sources = {source.name: source for item in missing for source in _sources(item.scorer)}
    for folder, of_url in ((Path(HF_HUB_CACHE), False), (user_cache(), True)):
        ours = [item for item in missing if bool(sources[item.name].url) == of_url]
        if ours and (why := offline(sources[ours[0].name])) is not None:
            raise MissingWeights(
                f"cannot fetch {', '.join(item.name for item in ours)}: {why}; fetch on a machine with a network and copy "
                f"its {folder}"
            )
        _refuse_full(folder, sum(item.n_bytes or 0 for item in ours))
    for item in missing:
        sources[item.name].fetch()


def _refuse_full(folder: Path, n_bytes: int) -> None:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise WriteError(f"{folder} has {size(free)} free and {size(n_bytes)} are to be downloaded; make room there")


def as_lines(items: Sequence[Needed]) -> str:
    """A line for each source, then the sum."""
    lines = []
    for item in items:
        amount = "size not known" if item.n_bytes is None else size(item.n_bytes)
        lines.append(f"{item.scorer:<13}{amount:<15}{'missing' if item.path is None else 'here':<9}{item.name}")
    missing = [item for item in items if item.path is None]
    total = sum(item.n_bytes or 0 for item in missing)
    more = " and what is not known" if any(item.n_bytes is None for item in missing) else ""
    lines.append(f"to download: {size(total)}{more}" if missing else "everything is here")
    return "\n".join(lines)
