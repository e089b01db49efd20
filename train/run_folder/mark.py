"""What a run writes into `.run/` of its folder when it begins: whose folder it is, and with which settings."""

import json
import os
from pathlib import Path
from typing import Any

from ...core.files import write_atomic

RUN = ".run"
_MARK = "run.json"
_BY = "prefloop train"


def read_mark(output: Path) -> dict[str, Any] | None:
    """What `write_mark` wrote; None where no run of ours began in the folder."""
    try:
        mark = json.loads((output / RUN / _MARK).read_text())
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and mark.get("written_by") == _BY else None


def write_mark(output: Path, **facts: Any) -> None:
    """
    Args:
        facts: `config`, the identity of the settings; `pairs`, the hash of the list of pairs.
    """
    data = json.dumps({"written_by": _BY} | facts, indent=1).encode()
    write_atomic(output / RUN / _MARK, data, make_parent=True)


def follow_umask(folder: Path) -> None:
    """Give the files below a folder the mode that `open` would: some libraries write files only their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
