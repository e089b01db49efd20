"""A stage's run: its row in the store, written when it begins and when it ends."""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from ..core.errors import Interrupted
from ..core.json import plain, utf8
from .pairstore import PairStore

_PACKAGES = ("prefloop", "torch", "diffusers", "transformers", "open_clip_torch", "accelerate", "peft", "duckdb")


@dataclass
class Run:
    """One call of a stage, as the `runs` table keeps it."""

    run_id: UUID
    kind: str
    config: Mapping
    summary: dict = field(default_factory=dict)
    parents: list[UUID] = field(default_factory=list)


@contextmanager
def run(store: PairStore, kind: str, config: Any, parents: list[UUID] | None = None) -> Iterator[Run]:
    """Write a run's row when it begins and when it ends, in whatever way it ends."""
    settings = plain(asdict(config) if is_dataclass(config) and not isinstance(config, type) else config)
    this = Run(uuid4(), kind, settings, parents=parents or [])
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
            store.try_ingest(wait=2.0 if status == "interrupted" else None)  # who ends a run does not wait long

    write("running")
    try:
        yield this
    except (Interrupted, KeyboardInterrupt) as error:
        write("interrupted", str(error))
        raise
    except BaseException as error:
        write("failed", f"{type(error).__name__}: {error}"[:2000])
        raise
    write("done")


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The commit of prefloop's own checkout, where it runs from one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
