"""The README of a result: signed, so that one that somebody else wrote or edited is never written over."""

import hashlib
from pathlib import Path

from ...core.errors import UsageError
from ...core.files import write_atomic

README = "README.md"
_SIGNATURE = "<!-- written by prefloop, {} -->\n"


def signed(text: str) -> str:
    """The text with a comment, which Markdown does not show, that changes with it."""
    return text + _SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest()[:32])


def is_our_readme(path: Path) -> bool:
    """Whether it stands as we wrote it."""
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError):
        return False
    lines = text.splitlines(keepends=True)
    return bool(lines) and text == signed("".join(lines[:-1]))


def write_readme(folder: Path, text: str) -> None:
    """
    Raises:
        UsageError: where the folder has a README.md that is somebody else's, or was edited.
    """
    path = folder / README
    if path.exists() and not is_our_readme(path):
        raise UsageError(f"{path} was written or edited by somebody else and stays; move it away to have one written")
    write_atomic(path, signed(text).encode())
