"""The import formats, and the detection of a source's format."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from ...core.errors import PrefloopError, UsageError
from ...core.ids import prompt_id, split_of
from ...core.validate import unknown
from .batches import Batch, select_rows
from .config import ImportConfig
from .flow_factory import flow_factory_records, is_flow_factory, read_flow_factory
from .folders import FolderPair, as_batches, folder_records, image_folders, layout, one_of_two, read_folders
from .hub import fetch_dataset
from .json_rows import read_json
from .kohya import kohya_folders, read_kohya
from .pairs import CHOSEN_REJECTED, PICKAPIC, column_map, pair_records
from .parquet import column_names, n_rows, read_parquet
from .ranked import SelectedRows, hpd_records, imagereward_records
from .record import Excluded, Record, prompt_problem
from .simpletuner import find_simpletuner, read_simpletuner
from .unlabelled import FORMATS as UNLABELLED
from .unlabelled import has_images, listed_images, metadata_files, unlabelled_images
from .webdataset import read_shards

LABELERS = {
    "pickapic": "human:pickapic",
    "preferences": "human:open-image-preferences",
    "hpd": "human:hpdv2",
    "imagereward": "human:imagereward",
    "folders": "imported",
    "simpletuner": "imported",
    "flow-factory": "imported",
    "kohya": "imported",
    "jsonl": "imported",
    "webdataset": "imported",
    "table": "imported",
}
"""Format → labeler of its labels, if the data does not name one."""
_ALL_COLUMNS = {name: name for name in PICKAPIC} | dict(CHOSEN_REJECTED)


@dataclass(frozen=True)
class Source:
    """A dataset whose format and columns are known; nothing of it has been stored yet."""

    format: str
    labeler: str | None
    """None for images without labels."""
    records: Iterator[Record | Excluded]
    n_rows: int | None
    """None if that is known only after reading it."""


def open_source(config: ImportConfig) -> Source:
    """Find the source, detect its format, and read its first row.

    Raises:
        UsageError: if the format, the columns or the condition do not fit it, it holds no pairs, or an image without labels
            has no caption.
        PrefloopError: if it does not exist or cannot be read.
    """
    if config.format not in ("auto", *LABELERS, *UNLABELLED):
        raise unknown("format", config.format, ("auto", *LABELERS, *UNLABELLED))
    path = _find(config.source)
    files = _files(path)
    form = _format(path, files, config) if config.format == "auto" else config.format
    _refuse_unfit(form, config)
    if form in UNLABELLED:
        records = unlabelled_images(path, form, config)
        return Source(form, None, iter(records), len(records))
    if config.map and form in ("hpd", "imagereward"):
        raise UsageError(f"the format {form} has fixed columns; leave out --map")
    batches, total = _batches(form, path, files, config)
    first = next(batches, None)
    if first is None:
        raise UsageError(f"{path} holds no rows in the format {form}; give another --format or folder")
    records = islice(_records(form, first, select_rows(chain([first], batches), config.where), config), config.limit)
    try:
        start = next(records)
    except StopIteration:
        raise UsageError(f"{path} holds no pairs{f' where {config.where}' if config.where else ''}") from None
    return Source(form, config.labeler or LABELERS[form], chain([start], records), total)


def _find(source: str) -> Path:
    path = Path(source).expanduser()
    if (path / "journal").is_dir() and (path / "pairs.duckdb").exists():
        raise UsageError(f"{path} is a store; use `prefloop store merge {path}`")
    if path.exists():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or path.suffix:
        raise PrefloopError(f"{source} does not exist; name a file, a folder or a hub id like owner/name")
    return fetch_dataset(source)


def _refuse_unfit(form: str, config: ImportConfig) -> None:
    """
    Raises:
        UsageError: if an option is for other formats, or the prompt of all pairs leaves none to train on.
    """
    if config.model is not None and form not in UNLABELLED:
        raise UsageError(f"--model is for images without labels; leave it out for the format {form}")
    if config.prompt is not None and form not in ("folders", *UNLABELLED):
        raise UsageError(f"--prompt is for folders of images; leave it out for the format {form}")
    for option in ("pairing", "pairs_per_prompt"):
        if form != "folders" and getattr(config, option) != getattr(ImportConfig, option):
            raise UsageError(
                f"--{option.replace('_', '-')} is for two folders, of good and of bad images, not for the format {form}"
            )
    if form == "folders" and config.prompt is not None:
        if problem := prompt_problem(config.prompt):
            raise UsageError(f"--prompt cannot be used: {problem}")
        if split_of(prompt_id(config.prompt)) != "train":
            raise UsageError(
                "--prompt would be held out for validation, as one prompt in twenty is, by its text, and nothing would be left "
                "to train on; change it a little, for example add a full stop"
            )


def _files(path: Path) -> dict[str, list[Path]]:
    """The source's files by extension, in order, without caches and hidden files."""
    files: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        inside = file.relative_to(path).parts
        if file.is_file() and not any(part.startswith((".", "cache-")) for part in inside):
            files.setdefault(file.suffix.lower(), []).append(file)
    return files


def _format(path: Path, files: dict[str, list[Path]], config: ImportConfig) -> str:
    two_folders = image_folders(path, config.map) is not None
    if config.prompt is not None and not two_folders:
        _refuse_one_of_two(path, config)
        return "images"
    if two_folders and config.prompt is not None:
        return "folders"
    if find_simpletuner(path):
        return "simpletuner"
    if tables := _tables(files):
        names = set(column_names(tables[0]))
        if {"jpg_0", "jpg_1"} <= names:
            return "pickapic"
        if {"prompt_id", "rank"} <= names:
            return "imagereward"
        return "preferences" if {"chosen", "rejected", "chosen_model"} <= names else "table"
    if ".tar" in files:
        return "webdataset"
    if two_folders:
        return "folders"
    if kohya_folders(path):
        return "kohya"
    if path.is_dir() and metadata_files(path):
        return "images"
    if ".jsonl" in files:
        return "flow-factory" if any(map(is_flow_factory, files[".jsonl"])) else "jsonl"
    if ".json" in files:
        return _json_format(files[".json"])
    if path.is_dir() and has_images(path):
        _refuse_one_of_two(path, config)
        return "images"
    raise UsageError(
        f"unknown format of {path}: it has no Parquet, Arrow, JSON or tar files, no images, and no folders good and bad, "
        "chosen and rejected, winner and loser, or w and l"
    )


def _refuse_one_of_two(path: Path, config: ImportConfig) -> None:
    """
    Raises:
        UsageError: if there is only a folder of good images, or only one of bad ones.
    """
    if not path.is_dir():
        return
    if {"chosen", "rejected"} & config.map.keys():
        raise UsageError(f"{path} has no folders {' and '.join(_names(config.map))}; {layout(path)}")
    names = one_of_two(path)
    if names is not None:
        raise UsageError(
            f"{path} has a folder {names[0]} but no folder {names[1]}; {layout(path)}. For images without labels give "
            "--format images"
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
    raise UsageError(
        f"unknown format of {paths[0]}: it has neither HPDv2's nor ImageRewardDB's columns; "
        "for images without labels give --format images"
    )


def _tables(files: dict[str, list[Path]]) -> list[Path]:
    return files.get(".parquet") or files.get(".arrow") or []


def _batches(
    form: str, path: Path, files: dict[str, list[Path]], config: ImportConfig
) -> tuple[Iterator[Batch], int | None]:
    root = path if path.is_dir() else path.parent
    if form == "folders":
        pairs = _folder_pairs(path, config)
        return as_batches(path.name, path.resolve(), pairs), len(pairs)
    if form == "simpletuner":
        file = find_simpletuner(path)
        if file is None:
            raise UsageError(f"{path} has no JSON file with a dataset whose conditioning_type is reference_strict")
        return read_simpletuner(file), None
    if form == "kohya":
        folders = kohya_folders(path)
        if not folders:
            raise UsageError(f"{path} has no folders w and l")
        return read_kohya(path, folders), None
    if form == "flow-factory":
        return read_flow_factory(files.get(".jsonl", [])), None
    if form == "webdataset":
        return read_shards(files.get(".tar", [])), None
    if form == "jsonl":
        return read_json(files.get(".jsonl", [])), None
    tables = _tables(files)
    if form == "hpd" or not tables:
        return read_json(files.get(".json", []), root), None
    return read_parquet(tables), n_rows(tables)


def _folder_pairs(path: Path, config: ImportConfig) -> list[FolderPair]:
    sides = image_folders(path, config.map)
    if sides is None:
        raise UsageError(f"{path} has no folders {' and '.join(_names(config.map))}; {layout(path)}")
    columns = {ours: theirs for ours, theirs in config.map.items() if ours not in ("chosen", "rejected")}
    if config.prompt is not None and columns:
        raise UsageError("--map names the columns of captions; leave it out with --prompt")
    listed = None if config.prompt is not None else listed_images(path, replace(config, map=columns))
    captions = {file: row.get("prompt") for file, row in (listed or {}).items()}
    return read_folders(path, sides, captions, config)


def _names(mapping: Mapping[str, str]) -> tuple[str, str]:
    return mapping.get("chosen", "good"), mapping.get("rejected", "bad")


def _records(form: str, first: Batch, batches: SelectedRows, config: ImportConfig) -> Iterator[Record | Excluded]:
    if form == "hpd":
        return hpd_records(batches)
    if form == "imagereward":
        return imagereward_records(batches)
    if form == "folders":
        return (record for batch, rows in batches for record in folder_records(batch, rows))
    columns = column_map(PICKAPIC if form == "pickapic" else _ALL_COLUMNS, config.map, first.table.column_names)
    if form == "flow-factory":
        return flow_factory_records(batches, columns)
    return (record for batch, rows in batches for record in pair_records(batch, rows, columns))
