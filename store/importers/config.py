"""Settings of an import."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.errors import UsageError
from ...core.text import refuse_unseen


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    source: str
    """A file, a folder, or a data set's hub id."""
    format: str = "auto"
    """auto, or a name of `formats.FORMATS`."""
    map: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column → its name in the source, such as prompt → caption."""
    labeler: str | None = None
    """Who decided; the format's own name if not given."""
    limit: int | None = None
    """Rows read at most."""
    where: str | None = None
    """A condition in SQL on the source's columns other than pictures."""
    max_bad: float = 0.01
    """Share of pairs that may be left out because they cannot be read."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_bad) and 0 <= self.max_bad <= 1):
            raise UsageError(f"max-bad must be a share from 0 to 1, got {self.max_bad}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit must be above 0, got {self.limit}")
        if self.labeler is not None and not self.labeler.strip():
            raise UsageError("labeler must be a name, got an empty one")
        refuse_unseen(self.labeler or "", "labeler")
        if self.where is not None and not self.where.strip():
            raise UsageError("where must be a condition in SQL, got an empty one")
