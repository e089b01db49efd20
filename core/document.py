"""What a command prints with --json: one document on stdout, which also says what failed."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from .json import plain
from .text import json_text

_NOTHING = object()


class _Document:
    """The document of the command that runs; it is printed at the end, when it is known whether the command failed."""

    wanted = False
    value: Any = _NOTHING


def start(wanted: bool) -> None:
    """A command begins.

    Args:
        wanted: whether --json is among its arguments.
    """
    _Document.wanted, _Document.value = wanted, _NOTHING


def answer(document: Any) -> None:
    """Set the command's document: numbers that are not finite become null, paths, ids and times text."""
    assert _Document.value is _NOTHING, "a command has one document"
    _Document.value = plain(document)
    if not _Document.wanted:  # called by a program, not by the command line
        finished()


def finished() -> None:
    """Print the document, if there is one."""
    value, _Document.value = _Document.value, _NOTHING
    if value is not _NOTHING:
        _print(value)


def failed(message: str, exit_code: int, kind: str) -> None:
    """Print the document with what failed: the command's own with `error` added, or `error` alone. Without --json, nothing.

    Args:
        kind: name of the error's class, such as UsageError.
    """
    value, _Document.value = _Document.value, _NOTHING
    if _Document.wanted and os.environ.get("RANK", "") in ("", "0"):  # of torchrun's processes only the first
        known = value if isinstance(value, Mapping) else {}
        _print({**known, "error": {"message": message, "exit_code": exit_code, "type": kind}})
    _Document.wanted = False


def _print(value: Any) -> None:
    sys.stdout.write(json_text(value, indent=1 if sys.stdout.isatty() else None) + "\n")
    sys.stdout.flush()
