"""Convert values to what JSON in UTF-8 can hold."""

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The value for JSON: paths and ids as text, tuples as lists, nan and inf as null."""
    if isinstance(value, Mapping):
        return {utf8(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    if value is None or isinstance(value, int | float | bool):
        return value
    return utf8(str(value))


def utf8(text: str) -> str:
    """The text as valid UTF-8; bytes of a file name that are not UTF-8 are written as \\udcNN."""
    return text.encode(errors="backslashreplace").decode()
