"""What every layout gives: a prompt with its pictures and what was said of them, or the reason why there is none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Choice = Literal["first", "second", "tie"]


class Picture(NamedTuple):
    source: bytes | Path
    """Its bytes, or a file below the folder that the user named."""
    model: str | None = None
    """Name of the model that drew it, where the data say so."""


class Judgement(NamedTuple):
    """Two of a record's pictures, by place, and which is preferred."""

    first: int
    second: int
    choice: Choice | None
    """None where nobody decided: the pair is kept without a label."""
    p_first: float | None = None
    """Probability that the first is preferred, where the data have one that says more than the choice."""
    margin: float | None = None
    labeler: str | None = None
    """None is the import's own labeler."""


class Record(NamedTuple):
    where: str
    """File and row, for messages."""
    prompt: str
    pictures: Sequence[Picture]
    judgements: Sequence[Judgement]
    tags: Mapping[str, str]


class Bad(NamedTuple):
    """A row, or a pair, that cannot be used."""

    where: str
    reason: str


def bad_prompt(text: object) -> str | None:
    """Why a prompt cannot be used; None where it can."""
    if not isinstance(text, str) or not text.strip():
        return "no prompt"
    if "\x00" in text:
        return "a NUL character in the prompt"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the prompt is no valid Unicode"
    return None
