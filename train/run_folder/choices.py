"""What automatic settings stood for when a run began, kept in its folder so that a resumed run keeps them."""

import json
from pathlib import Path
from typing import Any

from ...core.files import write_atomic
from .marker import RUN_DIR

_CHOICES = "choices.json"


def read_choices(output: Path) -> dict[str, Any]:
    """Name of a setting → its value; empty if none was kept."""
    try:
        choices = json.loads((output / RUN_DIR / _CHOICES).read_text())
    except (OSError, ValueError):
        return {}
    return choices if isinstance(choices, dict) else {}


def write_choices(output: Path, choices: dict[str, Any]) -> None:
    write_atomic(output / RUN_DIR / _CHOICES, json.dumps(choices, indent=1).encode(), make_parent=True)


def forget_choices(output: Path) -> None:
    """Before a run that has no checkpoint begins again, perhaps on another machine."""
    (output / RUN_DIR / _CHOICES).unlink(missing_ok=True)
