"""Where runs wrote their reports and plots, from whatever folder `browse` was started in."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from ...core.text import visible
from ...store import PairStore

PAGES = {"eval": "report.html", "round": "report.html", "train": "training.png"}
"""Kind of a run → the file in its folder that is looked at first."""
_MAX_BYTES = 20_000_000
_MOVED = 3
"""Folders from the end of a path that are looked for beside a store that was moved, at most."""


@dataclass(frozen=True)
class Output:
    """What a run wrote for people to look at."""

    page: str
    folder: Path | None
    problem: str
    """Why the folder was not found; else empty."""


def find_output(
    store: PairStore, run: UUID, kind: str, status: str, config: Mapping[str, Any], summary: Mapping[str, Any]
) -> Output | None:
    """The folder of a run's report or plot.

    Args:
        config: as in the table `runs`, like summary.

    Returns:
        None if the run writes none, or is not done and has not written it. Without a folder if it is gone or moved, or holds what a later
        run wrote.
    """
    recorded = _recorded(kind, config, summary)
    if recorded is None:
        return None
    page, replaced = PAGES[kind], False
    for folder, must_match in _candidates(store, recorded):
        try:
            if not (folder / page).is_file():
                continue
            written = _is_by(folder, run, kind, config, summary)
        except OSError:
            continue
        if written is not False and (written or not must_match):
            return Output(page, folder, "")
        replaced |= written is False and not must_match
    if status != "done":
        return None
    where = visible(os.path.normpath(recorded))
    return Output(
        page, None, f"{where} now holds what another run wrote" if replaced else f"{where} is gone or was moved"
    )


def _recorded(kind: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> Path | None:
    """The folder that the store names. Runs of an earlier prefloop may have a relative one."""
    names = {
        "eval": config.get("output_dir") or config.get("report") or summary.get("report"),
        "train": config.get("output_dir"),
        "round": config.get("output_dir")
        or (isinstance(model := summary.get("model"), str) and str(Path(model).parent)),
    }
    name = names.get(kind)
    return Path(name) if isinstance(name, str) and name and "\0" not in name else None


def _candidates(store: PairStore, recorded: Path) -> Iterator[tuple[Path, bool]]:
    """Where the folder may be, and whether only if it is known to hold what the run wrote."""
    home = store.path.resolve().parent
    yield recorded, False
    if not recorded.is_absolute():
        yield home / recorded, False
    yield store.path / "reports" / recorded.name, False
    # both were moved or copied together
    yield home, True
    for n in range(1, _MOVED + 1):
        if n < len(recorded.parts):
            yield home.joinpath(*recorded.parts[-n:]), True


def _is_by(folder: Path, run: UUID, kind: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> bool | None:
    """Whether the run, or one with the same result, wrote what is in the folder; None if nothing says so."""
    if kind == "eval":
        found = _read(folder / "results.json").get("evaluation_id")
        return None if found is None else found == summary.get("evaluation_id")
    if kind == "train":
        found = _read(folder / "prefloop.json").get("run_id")
        return None if found is None else found == str(run)
    return (
        True if (folder / "loop.json").is_file() and (folder / f"round-{config.get('round')}.json").is_file() else None
    )


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
