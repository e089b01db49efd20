"""The README.md of a result is signed, so that one that somebody else wrote or edited is never overwritten."""

import hashlib
from pathlib import Path

from ...core.errors import UsageError
from ...core.files import write_atomic

README = "README.md"
_SIGNATURE = "<!-- written by prefloop, {} -->\n"


def sign(text: str) -> str:
    """Append a comment with the text's hash, which Markdown does not show."""
    return text + _SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest()[:32])


def is_our_readme(path: Path) -> bool:
    """Whether prefloop wrote the file and nobody has edited it."""
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError):
        return False
    lines = text.splitlines(keepends=True)
    return bool(lines) and text == sign("".join(lines[:-1]))


def write_readme(folder: Path, text: str) -> None:
    """
    Raises:
        UsageError: if the folder has a README.md that somebody else wrote or edited.
    """
    path = folder / README
    if path.exists() and not is_our_readme(path):
        raise UsageError(
            f"{path} was written or edited by somebody else and is not overwritten; move it away to have one written"
        )
    write_atomic(path, sign(text).encode())
