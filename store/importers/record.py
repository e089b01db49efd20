"""What every layout yields: a prompt with its images and the preferences between them, or why a row is excluded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Choice = Literal["first", "second", "tie"]


class SourceImage(NamedTuple):
    source: bytes | Path
    """The bytes, or a file below the folder that the user named."""
    model: str | None = None
    """Name of the model that generated it, if the data says so."""
    image_index: int = 0
    """Number of the image among those of its prompt, if it is imported without a pair."""


class Preference(NamedTuple):
    """Two of a record's images, by position, and which is preferred."""

    first: int
    second: int
    choice: Choice | None
    """None if nobody decided: the pair is stored without a label."""
    p_first: float | None = None
    """Probability that the first is preferred, if the data has one that says more than the choice."""
    margin: float | None = None
    labeler: str | None = None
    """None is the labeler of the import."""


class Record(NamedTuple):
    where: str
    """File and row, for messages."""
    prompt: str
    images: Sequence[SourceImage]
    preferences: Sequence[Preference]
    """Empty for images that are imported without pairs."""
    tags: Mapping[str, str]


class Excluded(NamedTuple):
    """A row or pair that cannot be used."""

    where: str
    reason: str


def prompt_problem(text: object) -> str | None:
    """Why a prompt cannot be used; None if it can."""
    if not isinstance(text, str) or not text.strip():
        return "no prompt"
    if "\x00" in text:
        return "a NUL character in the prompt"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the prompt is not valid Unicode"
    return None
