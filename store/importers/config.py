"""Settings of an import."""

from dataclasses import dataclass, field

from ...core.errors import UsageError
from ...core.text import refuse_invisible
from ...core.validate import positive, unknown

PAIRINGS = ("auto", "name", "all")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    source: str
    """A file, a folder, or a dataset's hub id."""
    format: str = "auto"
    """auto, pickapic, preferences, hpd, imagereward, folders, simpletuner, flow-factory, kohya, jsonl, webdataset or table.
    For images without labels: images, or prompt-folders, where a folder's name is the prompt of its images."""
    map: dict[str, str] = field(default_factory=dict)
    """OURS=THEIRS: which column holds prompt, chosen, rejected, …, or which folder chosen and rejected; repeat for several."""
    labeler: str | None = None
    """Name of the labeler, if the data does not say; by default it follows from the format."""
    prompt: str | None = None
    """The prompt of all images, for folders of images without captions."""
    model: str | None = None
    """Name of the model that generated the images, for images without labels whose data does not say."""
    pairing: str = "auto"
    """Pairs of two folders: by equal file name; all, the images of a prompt in one folder with those in the other; or auto: name
    if most images have a partner with their name, otherwise all."""
    pairs_per_prompt: int = 200
    """Maximum number of pairs per prompt if all are paired with all; each image is in about equally many."""
    seed: int = 0
    """Seed for the choice of those pairs."""
    limit: int | None = None
    """Read only the first N rows."""
    where: str | None = None
    """SQL condition over the source's columns other than images."""
    max_unreadable: float = 0.01
    """Maximum fraction of pairs, or of images without labels, that cannot be read. Above it the exit code is 3."""

    def __post_init__(self) -> None:
        positive("max-unreadable", self.max_unreadable, 1, allow_zero=True)
        positive("pairs-per-prompt", self.pairs_per_prompt)
        if self.pairing not in PAIRINGS:
            raise unknown("pairing", self.pairing, PAIRINGS)
        if self.limit is not None:
            positive("limit", self.limit)
        if self.labeler is not None and not self.labeler.strip():
            raise UsageError("labeler must not be empty")
        if self.model is not None and not self.model.strip():
            raise UsageError("model must not be empty")
        refuse_invisible(self.labeler or "", "labeler")
        if self.where is not None and not self.where.strip():
            raise UsageError("where must be an SQL condition, got an empty text")


def columns_of(values: list[str]) -> dict[str, str]:
    """The values of `--map OURS=THEIRS` as a dict."""
    columns = {}
    for value in values:
        ours, equals, theirs = value.partition("=")
        if not equals or not ours or not theirs:
            raise UsageError(f"--map must be OURS=THEIRS, such as prompt=caption, got {value!r}")
        columns[ours] = theirs
    return columns
