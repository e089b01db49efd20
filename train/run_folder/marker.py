"""The marker that a run writes into `.run/` of its folder when it begins: prefloop train wrote here, with these settings."""

import json
from pathlib import Path
from typing import Any

from ...core.files import write_atomic

RUN_DIR = ".run"
_MARKER = "run.json"
_WRITTEN_BY = "prefloop train"


def read_marker(output: Path) -> dict[str, Any] | None:
    """What `write_marker` wrote; None if no run of prefloop began in the folder."""
    try:
        marker = json.loads((output / RUN_DIR / _MARKER).read_text())
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("written_by") == _WRITTEN_BY else None


def write_marker(output: Path, **facts: Any) -> None:
    """
    Args:
        facts: `config`, the identity of the settings; `pairs`, the hash of the list of pairs.
    """
    write_atomic(
        output / RUN_DIR / _MARKER, json.dumps({"written_by": _WRITTEN_BY} | facts, indent=1).encode(), make_parent=True
    )
