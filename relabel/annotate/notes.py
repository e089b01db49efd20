"""What a person notes about a pair beside the choice: that both images are bad, a flag, a comment."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import UsageError
from ...core.ids import canonical
from ...core.text import visible_lines

FLAGS = ("broken image", "unsafe", "other")
"""What can be wrong with a pair."""
MAX_COMMENT = 1000
"""Characters."""
BOTH_BAD = "bad"
"""The choice as the form sends it; it is stored as a tie whose notes say so."""


@dataclass(frozen=True)
class Notes:
    """Stored as labels.notes; a view, human_labels, has a column for each."""

    both_bad: bool = False
    """The choice is tie then: no image is preferred."""
    flag: str = ""
    """One of FLAGS, or nothing."""
    comment: str = ""

    @classmethod
    def from_form(cls, form: Mapping[str, str]) -> "Notes":
        """
        Raises:
            UsageError: if the flag is unknown or the comment too long.
        """
        flag, comment = form.get("flag", ""), _comment(form)
        if flag and flag not in FLAGS:
            raise UsageError(f"a flag is one of {', '.join(FLAGS)}")
        if len(comment) > MAX_COMMENT:
            raise UsageError(f"a comment can have up to {MAX_COMMENT} characters, got {len(comment)}; shorten it")
        return cls(form.get("choice") == BOTH_BAD, flag, comment)

    @classmethod
    def draft(cls, form: Mapping[str, str]) -> "Notes":
        """What the page shows again after a choice that was not saved, whatever it is."""
        return cls(flag=form.get("flag", ""), comment=_comment(form))

    @classmethod
    def from_json(cls, text: str | None) -> "Notes":
        """From a value of labels.notes; keys of a later prefloop are ignored."""
        stored = json.loads(text) if text else {}
        return cls(stored.get("both_bad") is True, str(stored.get("flag") or ""), str(stored.get("comment") or ""))

    def to_json(self) -> str | None:
        """The value of labels.notes; null if nothing was noted."""
        noted = {"both_bad": self.both_bad, "flag": self.flag, "comment": self.comment}
        return canonical(kept) if (kept := {key: value for key, value in noted.items() if value}) else None

    def kept_from(self, earlier: "Notes") -> "Notes":
        """With the flag and the comment of an earlier showing of the pair where this one has none: who says nothing when a
        pair is shown again takes nothing back. Whether both are bad belongs to the choice."""
        return Notes(self.both_bad, self.flag or earlier.flag, self.comment or earlier.comment)


NO_NOTES = Notes()


@dataclass(frozen=True)
class Label:
    """A choice with its notes."""

    choice: str
    """a, b, tie or skip."""
    notes: Notes = NO_NOTES


def _comment(form: Mapping[str, str]) -> str:
    return visible_lines(form.get("comment", "").replace("\r\n", "\n").replace("\r", "\n")).strip()
