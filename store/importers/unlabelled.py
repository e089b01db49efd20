"""Images without labels: each with a caption beside it or in a metadata file, in a folder named as its prompt, or one prompt
for all."""

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...core.errors import UsageError
from ...core.text import plural, refuse_invisible
from ...core.validate import unknown
from .batches import Batch, select_rows
from .config import ImportConfig
from .folders import caption, images
from .json_rows import as_table, json_objects
from .pairs import image_source, tags_of
from .record import Record, SourceImage, prompt_problem

FORMATS = ("images", "prompt-folders")
_METADATA = ("metadata.jsonl", "metadata.csv")
_PROMPTS = ("text", "prompt", "caption")
_COLUMNS = ("prompt", "model", "tags")
_OURS = ("file_name", "prompt", "model", "image_index")
"""Columns that --where can use besides those of a metadata file, in which file_name is below that file."""


def metadata_files(folder: Path) -> list[Path]:
    """The metadata files of the hub's imagefolder layout below a folder: those whose first row names a file."""
    files = sorted(path for name in _METADATA for path in folder.rglob(name) if _is_shown(folder, path))
    return [file for file in files if "file_name" in next(_rows_of(file), {})]


def has_images(folder: Path) -> bool:
    return any(_is_shown(folder, path) for path in images(folder, True))


def unlabelled_images(path: Path, form: str, config: ImportConfig) -> list[Record]:
    """A record for each image that the config selects, without preferences.

    Raises:
        UsageError: if an image has no caption or a listed file does not exist, which is named; or the options do not fit.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder; images without labels are imported from folders")
    if config.labeler is not None:
        raise UsageError(f"the format {form} has no labels; leave out --labeler")
    refuse_invisible(config.model or "", "model")
    if config.prompt is not None and (problem := prompt_problem(config.prompt)):
        raise UsageError(f"--prompt cannot be used: {problem}")
    if config.prompt is not None and form == "prompt-folders":
        raise UsageError("give --prompt or --format prompt-folders, not both")
    if config.map and (config.prompt is not None or form == "prompt-folders"):
        option = "--prompt" if config.prompt is not None else f"--format {form}"
        raise UsageError(f"--map names the columns of captions; leave it out with {option}")
    root = path.resolve()
    rows = _rows(path, root, form, config)
    if not rows:
        raise UsageError(f"{path} holds no images (.png, .jpg, .jpeg or .webp)")
    batch = Batch(path.name, 1, as_table(rows, path), root)
    selected = (rows[number] for _, numbers in select_rows(iter([batch]), config.where) for number in numbers)
    chosen = list(islice(selected, config.limit))
    if not chosen:
        raise UsageError(f"{path} holds no images where {config.where}")
    return _records(chosen, root, form)


def _rows(path: Path, root: Path, form: str, config: ImportConfig) -> list[dict[str, Any]]:
    """A row for each image file and each file that a metadata file lists, sorted by name."""
    files = sorted(image.relative_to(path).as_posix() for image in images(path, True) if _is_shown(path, image))
    listed = {} if config.prompt is not None or form == "prompt-folders" else listed_images(path, config)
    if listed is None:
        listed = {}
        captions = {file: caption(root, [(root / file).with_suffix(".txt")]) for file in files}
    elif config.prompt is not None:
        captions = dict.fromkeys(files, config.prompt)
    elif form == "prompt-folders":
        captions = {file: Path(file).parent.name or None for file in files}
    else:
        captions = {file: row["prompt"] for file, row in listed.items()}
    rows, numbers = [], Counter()
    for file in sorted({*files, *listed}):
        ours = {"model": None, **listed.get(file, {}), "file_name": file, "prompt": captions.get(file)}
        prompt = str(ours["prompt"])
        rows.append(ours | {"model": ours["model"] or config.model, "image_index": numbers[prompt]})
        numbers[prompt] += 1
    return rows


def listed_images(path: Path, config: ImportConfig) -> dict[str, dict[str, Any]] | None:
    """Image below the path → its row of a metadata file; None if no file has such rows."""
    found: dict[str, dict[str, Any]] = {}
    files = metadata_files(path)
    if config.map and not files:
        raise UsageError(f"--map names columns, and {path} has no {' or '.join(_METADATA)} with a column file_name")
    for file in files:
        for row in _rows_of(file):
            columns = _columns(file, row, config)
            name = row.get("file_name")
            if not isinstance(name, str) or not name or "\x00" in name:
                raise UsageError(f"{file}: a row has no file_name")
            image = (file.parent.relative_to(path) / name).as_posix()
            if image in found:
                raise UsageError(f"{file}: {name} is listed twice")
            ours = {ours: row.get(column) for ours, column in columns.items() if ours != "tags"}
            tags = [tag for tag in columns.get("tags", "").split("+") if tag]
            found[image] = {**row, **ours, " tags": tags_of(tags, [row.get(tag) for tag in tags])}
    return found if files else None


def _columns(file: Path, row: dict[str, Any], config: ImportConfig) -> dict[str, str]:
    """Our name for a column → its name in a metadata file."""
    for name, column in config.map.items():
        if name not in _COLUMNS:
            raise unknown("column in --map", name, _COLUMNS)
        for part in column.split("+") if name == "tags" else [column]:
            if part not in row:
                raise UsageError(f"--map {name}={column}: {file} has no column {part!r}; it has {', '.join(row)}")
    prompt = next((name for name in _PROMPTS if name in row), None)
    defaults = {"prompt": prompt, "model": "model" if "model" in row else None}
    return {name: column for name, column in defaults.items() if column} | dict(config.map)


def _rows_of(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix == ".jsonl":
        yield from json_objects(file)
        return
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines, restkey="", restval=None):
                yield {name: value for name, value in row.items() if name}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} cannot be read: {error}; it must be CSV in UTF-8") from error


def _records(rows: list[dict[str, Any]], root: Path, form: str) -> list[Record]:
    records, problems, n_without_caption = [], [], 0
    for row in rows:
        file, source = row["file_name"], image_source(row["file_name"], root)
        if not isinstance(source, Path):
            problems.append(f"{file}: {source!s}")
        elif not source.is_file():
            problems.append(f"{file} does not exist")
        elif problem := prompt_problem(row["prompt"]):
            n_without_caption += problem == "no prompt"
            problems.append(f"{file} has no caption" if problem == "no prompt" else f"{file}: {problem}")
        else:
            image = SourceImage(source, None if row["model"] is None else str(row["model"]), row["image_index"])
            records.append(Record(file, row["prompt"], (image,), (), row.get(" tags", {})))
    if problems:
        others = f", and {plural(len(problems) - 1, 'other')} cannot be used" if len(problems) > 1 else ""
        raise UsageError(f"{problems[0]}{others}; {_cure(form) if n_without_caption else 'correct or remove it'}")
    return records


def _cure(form: str) -> str:
    if form == "prompt-folders":
        return "put it into a folder that is named as its prompt"
    return (
        "write it into a .txt file with the image's name, or as the text of the image's file_name in metadata.jsonl or "
        "metadata.csv; give --prompt if all images have the same, or --format prompt-folders if each folder is named as the "
        "prompt of its images"
    )


def _is_shown(folder: Path, path: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)
