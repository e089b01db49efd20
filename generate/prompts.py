"""Read prompts, from a file of any common format or a named set, into texts with tags."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from ..core.errors import UsageError, reading
from .prompt_files import TEXT_FORMATS, Row, read_rows
from .prompt_sets.files import find_files, hash_of, local_files, revision_of, set_rows
from .prompt_sets.record import PromptSet
from .prompt_sets.registry import is_set, prompt_set, set_names

BUILT_IN = {"shapes": "train.jsonl", "shapes-heldout": "heldout.jsonl"}
_read: dict[str, dict[str, str | None]] = {}
"""Source → identity of what was read last from it: a run records it, and must not read the file a second time."""


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    tags: dict[str, str] = field(default_factory=dict)
    """Every other column of a file, or those that a set names, such as PartiPrompts' Category and Challenge."""


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """Where prompts are read from."""

    source: str
    """As the user gave it."""
    files: list[Path]
    prompt_set: PromptSet | None = None
    """None for a file, and for the built-in prompts."""

    @cached_property
    def content(self) -> bytes | None:
        """Of a text file that is not of a set; read once, so that what is hashed is what is parsed."""
        if self.prompt_set is not None or self.files[0].suffix.lower() not in TEXT_FORMATS:
            return None
        return self.files[0].read_bytes()

    def rows(self) -> Iterator[Row]:
        """Every row with a prompt, repeated ones too.

        Raises:
            UsageError: if the file cannot be read, or a prompt cannot be used.
        """
        rows = (
            read_rows(self.files[0], content=self.content)
            if self.prompt_set is None
            else set_rows(self.prompt_set, self.files)
        )
        for where, text, tags in rows:
            if not text.strip():
                continue
            if "\x00" in text:
                raise UsageError(f"{self.source}, {where}: the prompt contains a NUL character; remove it")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UsageError(
                    f"{self.source}, {where}: the prompt is not valid Unicode: {error.reason}; remove it"
                ) from error
            yield where, text, tags

    def identity(self) -> dict[str, str | None]:
        """What a run records: name, revision (of a published set, if the files are known to be those) and sha256 of the files."""
        digest = hash_of(self.files) if self.content is None else hashlib.sha256(self.content).hexdigest()
        chosen = self.prompt_set
        if chosen is None:
            return {"name": self.source, "revision": None, "sha256": digest}
        if "=" not in self.source:
            revision = revision_of(chosen, self.files)
        else:
            revision = chosen.revision if digest == chosen.sha256 else None
        return {"name": chosen.name, "revision": revision, "sha256": digest}


def find_prompts(source: str) -> PromptSource:
    """Find prompts; a set is fetched if it is not in the cache.

    Args:
        source: "shapes", "shapes-heldout", the name of a set, NAME=PATH for a copy of a set, or a file: .txt (one prompt per
            line), .jsonl, .json, .csv, .tsv or .parquet; all but .txt have a column "prompt", in upper or lower case, and may
            have others.

    Raises:
        UsageError: if there is nothing of that name, or it has another format.
        PrefloopError: if a set cannot be fetched.
        IntegrityError: if the files of a set are not those that were published.
    """
    if source in BUILT_IN:
        return PromptSource(
            source=source, files=[Path(str(files("prefloop").joinpath("shapes", "prompts", BUILT_IN[source])))]
        )
    if is_set(source):  # its name has no suffix: no prompt file can have it
        chosen = prompt_set(source)
        return PromptSource(source=source, files=find_files(chosen), prompt_set=chosen)
    name, equals, copy = source.partition("=")
    if equals and is_set(name):
        chosen = prompt_set(name)
        return PromptSource(source=source, files=local_files(chosen, Path(os.path.expanduser(copy))), prompt_set=chosen)
    path = Path(os.path.expanduser(source))
    with reading(path):
        is_file = path.is_file()
    if not is_file:
        raise UsageError(
            f"prompt file {source} not found; name a file, or one of {', '.join([*BUILT_IN, *set_names()])}"
        )
    return PromptSource(source=source, files=[path])


def read_prompts(source: str, limit: int | None = None) -> list[Prompt]:
    """The prompts of a source, each text once, in its order.

    Args:
        source: as for `find_prompts`, which may raise too.

    Raises:
        UsageError: if it has another format, has no column of prompts or no prompts.
    """
    prompts: dict[str, Prompt] = {}
    found = find_prompts(source)
    for _, text, tags in found.rows():
        prompts.setdefault(text, Prompt(text, tags))
        if limit is not None and len(prompts) == limit:
            break
    if not prompts:
        raise UsageError(f"{source} holds no prompts")
    _read[source] = found.identity()
    return list(prompts.values())


def identity_of(source: str) -> dict[str, str | None]:
    """The `PromptSource.identity` of what `read_prompts` read last from a source in this process."""
    return _read.get(source) or find_prompts(source).identity()
