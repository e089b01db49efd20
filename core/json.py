"""Values as JSON in UTF-8 can hold them."""

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The value as JSON in UTF-8 knows it: paths and ids as text, tuples as lists, nan and inf as null."""
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
    """A text that the database can read; of a file's name that is not UTF-8, the other bytes are written as \\udcNN."""
    return text.encode(errors="backslashreplace").decode()
