"""Texts that came from outside, made fit for a terminal, a spreadsheet or a page."""

import json
import re
import unicodedata
from typing import Any

from .errors import UsageError

_JOINERS = "\u200c\u200d"
"""They join and part the letters of Persian or Hindi and the parts of an emoji; they move nothing."""
_SUSPECT = re.compile(r"[^ -~]")
_IN_JSON = re.compile(r"[^\n -~]")


def visible(text: str) -> str:
    """The text without characters that would steer a terminal or turn the order of what is read."""
    return _SUSPECT.sub(lambda found: found[0] if _is_seen(found[0]) else "\N{REPLACEMENT CHARACTER}", text)


def visible_lines(text: str) -> str:
    """The same of a text that may have lines and tabs."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON to be read as it is; what would steer a terminal is escaped, and stays the same value."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _IN_JSON.sub(lambda found: found[0] if _is_seen(found[0]) else json.dumps(found[0])[1:-1], text)


def guarded(value: Any) -> Any:
    """A cell of CSV: a text that a spreadsheet would run as a formula is kept a text, and steers no terminal."""
    if not isinstance(value, str):
        return value
    kept = "'" + value if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return visible_lines(kept.replace("\r\n", "\n"))


def plural(n: int, singular: str, several: str | None = None) -> str:
    """ "1 pair", "2 pairs"; `several` is the plural if it does not end in s alone."""
    return f"{n} {singular if n == 1 else several or singular + 's'}"


def refuse_unseen(name: str, what: str) -> None:
    """
    Raises:
        UsageError: where a new name has characters that are not seen.
    """
    if visible(name) != name:
        raise UsageError(f"{what} must be of characters that are seen, got {name!r}")


def _is_seen(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"
