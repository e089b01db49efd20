"""Settings of an import."""

import math
from dataclasses import dataclass, field

from ...core.errors import UsageError
from ...core.text import refuse_unseen


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    source: str
    """A file, a folder, or a dataset's hub id."""
    format: str = "auto"
    """auto, pickapic, preferences, hpd, imagereward, folders, jsonl, webdataset or table."""
    map: dict[str, str] = field(default_factory=dict)
    """OURS=THEIRS: which column holds prompt, chosen, rejected, …; repeat for several."""
    labeler: str | None = None
    """Who decided, if the data do not say; by default the format's name."""
    limit: int | None = None
    """Read only the first N rows."""
    where: str | None = None
    """SQL condition over the source's columns other than images."""
    max_unreadable: float = 0.01
    """Maximum fraction of pairs that cannot be read. Above it the exit code is 3."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_unreadable) and 0 <= self.max_unreadable <= 1):
            raise UsageError(f"max-unreadable must be from 0 to 1, got {self.max_unreadable}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit must be above 0, got {self.limit}")
        if self.labeler is not None and not self.labeler.strip():
            raise UsageError("labeler must be a name, got an empty one")
        refuse_unseen(self.labeler or "", "labeler")
        if self.where is not None and not self.where.strip():
            raise UsageError("where must be a condition in SQL, got an empty one")


def columns_of(values: list[str]) -> dict[str, str]:
    """From `--map OURS=THEIRS`."""
    found = {}
    for value in values:
        ours, equals, theirs = value.partition("=")
        if not equals or not ours or not theirs:
            raise UsageError(f"--map takes OURS=THEIRS, such as prompt=caption, got {value!r}")
        found[ours] = theirs
    return found
