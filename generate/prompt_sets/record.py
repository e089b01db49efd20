"""A published set of prompts: where it lies, how to read it, and how to tell that a copy is right."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ...core.errors import UsageError
from ...core.hub import HUB_ID

NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    name: str
    """Letters, digits, - and _: without a dot or a slash it cannot be mistaken for a file."""
    source: str
    """Id of a data set on the hub, or the https address of the files' folder or of a zip file; `{revision}` in an address is
    replaced."""
    files: tuple[str, ...]
    """Paths below the source; in a zip file patterns, such as */prompts/*.txt."""
    archive: bool = False
    """Whether the source is a zip file."""
    revision: str | None = None
    """Commit of the repository; None is the latest one."""
    n_prompts: int
    """Number of prompts as published, repeated ones too."""
    sha256: str | None = None
    """Of the file; of several files, of the lines that `sha256sum` prints for them, sorted by name. None if it is not known:
    only the number of prompts is checked then."""
    prompt: str = "prompt"
    """Column with the prompts, in upper or lower case."""
    tags: tuple[str, ...] = ()
    """Columns that are kept as tags."""
    file_tag: str | None = None
    """Tag whose value is the name of the file, without its suffix and an ending _val."""
    license: str | None = None
    """None if it is not known."""
    citation: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(f"the name of a prompt set must be of letters, digits, - and _, got {self.name!r}")
        if not self.files:
            raise UsageError(f"the prompt set {self.name} names no files")
        for file in self.files:
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise UsageError(f"the prompt set {self.name} names a file outside of its source, {file}")
        names = {PurePosixPath(file).name for file in self.files}
        if len(names) < len(self.files):
            raise UsageError(f"two files of the prompt set {self.name} have the same name")
        if self.n_prompts < 1:
            raise UsageError(f"the prompt set {self.name} must have at least one prompt, got {self.n_prompts}")
        secure = self.source.startswith("https://") or (self.source.startswith("http://") and self.sha256 is not None)
        if not secure and (self.archive or not HUB_ID.fullmatch(self.source)):
            raise UsageError(
                f"the source of the prompt set {self.name} must be a data set on the hub or an https address (http only with "
                f"a sha256), got {self.source!r}"
            )

    @property
    def on_hub(self) -> bool:
        return "://" not in self.source

    @property
    def address(self) -> str:
        """The source with the revision in it."""
        return self.source.replace("{revision}", self.revision or "")

    @property
    def where(self) -> str:
        """The source for people: of a single file at an address, the file's own."""
        single = len(self.files) == 1 and not self.archive and not self.on_hub
        return f"{self.address.rstrip('/')}/{self.files[0]}" if single else self.address

    @property
    def tag_names(self) -> tuple[str, ...]:
        return self.tags if self.file_tag is None else (self.file_tag, *self.tags)
