"""Settings of an export."""

from dataclasses import dataclass
from pathlib import Path

from ...core.errors import UsageError
from ...core.validate import unknown

FORMATS = (
    *("pickapic", "datasets", "webdataset", "folders", "simpletuner", "flow-factory", "kohya"),
    *("csv", "jsonl"),
)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    output_dir: Path
    """Folder to create."""
    format: str = "datasets"
    """pickapic, datasets, webdataset, folders, simpletuner, flow-factory, kohya, csv or jsonl."""
    labelers: tuple[str, ...] = ()
    """Labeler whose labels to export; repeat for several. Defaults to all."""
    where: str | None = None
    """SQL condition over the view preferences."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
        if self.where is not None and not self.where.strip():
            raise UsageError("where must be an SQL condition, got an empty text")
