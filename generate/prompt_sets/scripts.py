"""The scripts in which a text is written, from the names that Unicode gives its letters."""

import unicodedata
from functools import cache


def scripts_of(text: str) -> set[str]:
    """Such as Latin, Cyrillic, Han, Hiragana; empty for a text without letters."""
    return {script for character in set(unicodedata.normalize("NFKC", text)) if (script := _script(character))}


@cache
def _script(character: str) -> str | None:
    if unicodedata.category(character) not in ("Lu", "Ll", "Lt", "Lo"):
        return None
    name = unicodedata.name(character, "").split(" ")[0].capitalize()
    return "Han" if name == "Cjk" else name or None
