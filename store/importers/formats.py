"""The formats by name, and which of them a source is in."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from ...core.errors import PrefloopError, UsageError
from .batches import Batch, selected
from .config import ImportConfig
from .folders import read_folders, sides
from .hub import fetched
from .json_rows import read_json
from .pairs import DECIDED, PICKAPIC, pair_records, roles
from .parquet import column_names, n_rows, read_parquet
from .ranked import Selected, hpd_records, imagereward_records
from .record import Bad, Record
from .webdataset import read_shards

LABELERS = {
    "pickapic": "human:pickapic",
    "preferences": "human:open-image-preferences",
    "hpd": "human:hpdv2",
    "imagereward": "human:imagereward",
    "folders": "imported",
    "jsonl": "imported",
    "webdataset": "imported",
    "table": "imported",
}
"""Each format and the labeler its labels are of, where the data name none."""
_NEUTRAL = {name: name for name in PICKAPIC} | dict(DECIDED)


@dataclass(frozen=True)
class Source:
    """A data set that was found and understood; nothing of it has been kept."""

    format: str
    labeler: str
    records: Iterator[Record | Bad]
    n_rows: int | None
    """None where it takes reading to know."""


def open_source(config: ImportConfig) -> Source:
    """Find the source, tell its format, and read its first row.

    Raises:
        UsageError: where the format, the columns or the condition do not fit it, or it holds no pair.
        PrefloopError: where it is not there, or cannot be read.
    """
    if config.format != "auto" and config.format not in LABELERS:
        raise UsageError(f"no format is called {config.format!r}; there are auto, {', '.join(LABELERS)}")
    path = _find(config.source)
    files = _files(path)
    form = _format(path, files) if config.format == "auto" else config.format
    if config.map and form in ("hpd", "imagereward"):
        raise UsageError(f"--map has no use for the format {form}, whose columns are fixed")
    batches, total = _batches(form, path, files)
    first = next(batches, None)
    if first is None:
        raise UsageError(f"{path} holds no rows of the format {form}; name another --format or folder")
    records = islice(_records(form, first, selected(chain([first], batches), config.where), config), config.limit)
    try:
        start = next(records)
    except StopIteration:
        raise UsageError(f"{path} holds no pair{f' where {config.where}' if config.where else ''}") from None
    return Source(form, config.labeler or LABELERS[form], chain([start], records), total)


def _find(source: str) -> Path:
    path = Path(source).expanduser()
    if (path / "journal").is_dir() and (path / "pairs.duckdb").exists():
        raise UsageError(f"{path} is a store; `prefloop store merge {path}` takes what it holds")
    if path.exists():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or path.suffix:
        raise PrefloopError(f"there is no {source}; name a file, a folder or a hub id like owner/name")
    return fetched(source)


def _files(path: Path) -> dict[str, list[Path]]:
    """The source's files by ending, in order; caches and hidden ones are not in it."""
    found: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        inside = file.relative_to(path).parts
        if file.is_file() and not any(part.startswith((".", "cache-")) for part in inside):
            found.setdefault(file.suffix.lower(), []).append(file)
    return found


def _format(path: Path, files: dict[str, list[Path]]) -> str:
    if tables := _tables(files):
        names = set(column_names(tables[0]))
        if {"jpg_0", "jpg_1"} <= names:
            return "pickapic"
        if {"prompt_id", "rank"} <= names:
            return "imagereward"
        return "preferences" if {"chosen", "rejected", "chosen_model"} <= names else "table"
    if ".tar" in files:
        return "webdataset"
    if path.is_dir() and sides(path):
        return "folders"
    if ".jsonl" in files:
        return "jsonl"
    if ".json" in files:
        return _json_format(files[".json"])
    raise UsageError(
        f"{path} is in no known format: there is no Parquet, Arrow, JSON or tar file, and no folders chosen and "
        "rejected (or winner and loser)"
    )


def _json_format(paths: list[Path]) -> str:
    for path in paths:
        try:
            items = json.loads(path.read_bytes())
        except ValueError:
            continue
        if isinstance(items, list) and items and isinstance(items[0], dict):
            if {"rank", "prompt_id"} <= items[0].keys():
                return "imagereward"
            if items[0].keys() & {"human_preference", "rank"}:
                return "hpd"
    raise UsageError(f"{paths[0]} is in no known format: neither HPDv2's nor ImageRewardDB's columns are in it")


def _tables(files: dict[str, list[Path]]) -> list[Path]:
    return files.get(".parquet") or files.get(".arrow") or []


def _batches(form: str, path: Path, files: dict[str, list[Path]]) -> tuple[Iterator[Batch], int | None]:
    root = path if path.is_dir() else path.parent
    if form == "folders":
        found = sides(path)
        if found is None:
            raise UsageError(f"{path} has no folders chosen and rejected, nor winner and loser")
        return read_folders(path, *found), None
    if form == "webdataset":
        return read_shards(files.get(".tar", [])), None
    if form == "jsonl":
        return read_json(files.get(".jsonl", [])), None
    tables = _tables(files)
    if form == "hpd" or not tables:
        return read_json(files.get(".json", []), root), None
    return read_parquet(tables), n_rows(tables)


def _records(form: str, first: Batch, batches: Selected, config: ImportConfig) -> Iterator[Record | Bad]:
    if form == "hpd":
        return hpd_records(batches)
    if form == "imagereward":
        return imagereward_records(batches)
    there = roles(PICKAPIC if form == "pickapic" else _NEUTRAL, config.map, first.table.column_names)
    return (record for batch, rows in batches for record in pair_records(batch, rows, there))
