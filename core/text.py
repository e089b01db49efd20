"""Make texts from outside safe for a terminal, a spreadsheet or a page."""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError

_JOINERS = "\u200c\u200d"
"""They join and separate letters of Persian or Hindi and parts of an emoji; they move nothing."""
_SUSPECT = re.compile(r"[^ -~]")
_IN_JSON = re.compile(r"[^\n -~]")


def visible(text: str) -> str:
    """The text without characters that control a terminal or change the order in which text is displayed."""
    return _SUSPECT.sub(lambda match: match[0] if _is_visible(match[0]) else "\N{REPLACEMENT CHARACTER}", text)


def visible_lines(text: str) -> str:
    """The same for a text that may have lines and tabs."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that people can read; characters that control a terminal are escaped, so the value stays the same."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _IN_JSON.sub(lambda match: match[0] if _is_visible(match[0]) else json.dumps(match[0])[1:-1], text)


def csv_cell(value: Any) -> Any:
    """A value for a CSV file; a text that a spreadsheet would run as a formula or that controls a terminal is made harmless."""
    if not isinstance(value, str):
        return value
    kept = "'" + value if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return visible_lines(kept.replace("\r\n", "\n"))


def plural(n: int, singular: str, several: str | None = None) -> str:
    """ "1 pair", "2 pairs"; `several` is the plural if it does not end in s alone."""
    return f"{n} {singular if n == 1 else several or singular + 's'}"


def percent(share: float, digits: int = 1, sign: str = "") -> str:
    """A share 0 to 1 such as "52.4 %", the one form of percentages in all texts.

    Args:
        sign: "+" to write that of positive numbers too.
    """
    return f"{100 * share:{sign}.{digits}f} %"


def size(n_bytes: int) -> str:
    """Of memory or a disk, such as "1.5 GiB"."""
    return f"{n_bytes / 2**30:.3g} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.3g} MiB"


def duration(seconds: float) -> str:
    """Such as "12 s", "7 min", "3.2 h" or "5 days"."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of models without their folders, unless that makes two the same."""
    short = [Path(name).name or name for name in names]
    return {name: title if short.count(title) == 1 else name for name, title in zip(names, short, strict=True)}


def refuse_invisible(name: str, what: str) -> None:
    """
    Raises:
        UsageError: if a new name has invisible characters.
    """
    if visible(name) != name:
        raise UsageError(f"{what} must not have invisible characters, got {name!r}")


def _is_visible(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"
