"""The run of a stage: a row in the store, written at its start and its end."""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from ..core.errors import Interrupted
from ..core.json import plain, utf8
from .pairstore import PairStore

_PACKAGES = (
    "prefloop",
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "accelerate",
    "peft",
    "bitsandbytes",
    "duckdb",
)


_enclosing: ContextVar[tuple[Path, UUID] | None] = ContextVar("enclosing", default=None)
"""The innermost run that is under way here, and the folder of its store."""


@dataclass
class Run:
    """One call of a stage, as a row of the table `runs`."""

    run_id: UUID
    kind: str
    config: Mapping
    summary: dict = field(default_factory=dict)
    parents: list[UUID] = field(default_factory=list)


@contextmanager
def run(store: PairStore, kind: str, config: Any, parents: list[UUID] | None = None) -> Iterator[Run]:
    """Write a run's row at the start of the block, and at its end, however it ends.

    A run inside the block of another one in the same store is its child.

    Args:
        parents: runs whose results it uses.
    """
    settings = plain(asdict(config) if is_dataclass(config) and not isinstance(config, type) else config)
    folder, enclosing = store.path.resolve(), _enclosing.get()
    around = [enclosing[1]] if enclosing is not None and enclosing[0] == folder else []
    this = Run(uuid4(), kind, settings, parents=list(dict.fromkeys([*around, *(parents or ())])))
    started = _now()

    def write(status: str, error: str | None = None) -> None:
        row = {
            "run_id": this.run_id,
            "kind": kind,
            "status": status,
            "started": started,
            "updated": _now(),
            "config": json.dumps(settings, sort_keys=True),
            "versions": json.dumps(versions()),
            "git_commit": _git_commit(),
            "parents": [str(parent) for parent in this.parents],
            "summary": json.dumps(plain(this.summary), sort_keys=True),
            "error": error and utf8(error),
        }
        store.append("runs", [row])
        if status != "running":
            store.try_ingest(
                wait=2.0 if status == "interrupted" else None
            )  # whoever interrupts a run does not want to wait

    write("running")
    inside = _enclosing.set((folder, this.run_id))
    try:
        yield this
    except (Interrupted, KeyboardInterrupt) as error:
        write("interrupted", str(error))
        raise
    except BaseException as error:
        write("failed", f"{type(error).__name__}: {error}"[:2000])
        raise
    else:
        write("done")
    finally:
        _enclosing.reset(inside)


@cache
def versions() -> dict[str, str]:
    """Of Python and the packages that affect results, as this process runs them."""
    installed = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


@cache
def _git_commit() -> str | None:
    """The commit of prefloop's own checkout, if it runs from one; later commits are not what this process runs."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
