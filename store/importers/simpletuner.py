"""SimpleTuner's dataloader configuration for Flow-DPO: a dataset, and one of type reference_strict with its rejected images."""

import json
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from ...core.errors import UsageError
from .batches import Batch
from .folders import FolderPair, as_batches, caption, images

_REJECTED = "reference_strict"
_CONFIG_BYTES = 1_000_000  # a larger JSON file holds data


def find_simpletuner(path: Path) -> Path | None:
    """The configuration with a dataset of rejected images: the path itself, or a JSON file in it."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        is_small = file.suffix.lower() == ".json" and file.is_file() and file.stat().st_size < _CONFIG_BYTES
        if is_small and any(dataset.get("conditioning_type") == _REJECTED for dataset in _datasets(file)):
            return file
    return None


def read_simpletuner(file: Path) -> Iterator[Batch]:
    """A row for each caption of each file name in either folder; what it lacks is null.

    Raises:
        UsageError: if a dataset has no partner, its folder is not below the configuration's folder, or its captions are not
            in text files.
    """
    root = file.parent.resolve()
    for chosen, rejected in _dataset_pairs(file):
        folders = _folder(file, root, chosen), _folder(file, root, rejected)
        yield from as_batches(folders[0].name, root, _pairs(root, chosen, *folders, _caption_strategy(file, chosen)))


def _datasets(file: Path) -> list[dict[str, Any]]:
    """The datasets that are not disabled; none if the file holds something else."""
    try:
        items = json.loads(file.read_bytes())
    except ValueError:
        return []
    datasets = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return [dataset for dataset in datasets if not dataset.get("disabled") and not dataset.get("disable")]


def _dataset_pairs(file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    datasets = _datasets(file)
    for rejected in datasets:
        if rejected.get("conditioning_type") != _REJECTED:
            continue
        partners = [dataset for dataset in datasets if dataset is not rejected and _are_partners(dataset, rejected)]
        if not partners:
            raise UsageError(
                f"{file}: no dataset has conditioning_data {rejected.get('id')!r}; add it to the dataset of chosen images"
            )
        for chosen in partners:
            yield chosen, rejected


def _are_partners(chosen: dict[str, Any], rejected: dict[str, Any]) -> bool:
    names = chosen.get("conditioning_data")
    listed = rejected.get("id") in (names if isinstance(names, list) else [names])
    return rejected.get("id") is not None and (listed or rejected.get("source_dataset_id") == chosen.get("id"))


def _folder(file: Path, root: Path, dataset: dict[str, Any]) -> Path:
    """The dataset's folder as written, or else the folder of that name beside the file, as in a dataset that was moved."""
    value = dataset.get("instance_data_dir")
    if isinstance(value, str) and value and "\x00" not in value:
        for candidate in (root / value, root / PureWindowsPath(value).name):
            folder = candidate.resolve()
            if folder.is_relative_to(root) and folder.is_dir():
                return folder
    raise UsageError(
        f"{file}: instance_data_dir {value!r} of {dataset.get('id')!r} is not a folder below {root}; copy it there"
    )


def _caption_strategy(file: Path, dataset: dict[str, Any]) -> str:
    strategy = dataset.get("caption_strategy") or "textfile"
    if strategy not in ("textfile", "instanceprompt"):
        raise UsageError(
            f"{file}: captions of {dataset.get('id')!r} are read with caption_strategy textfile or instanceprompt, not "
            f"{strategy!r}; write a .txt beside each image"
        )
    return strategy


def _pairs(root: Path, dataset: dict[str, Any], chosen: Path, rejected: Path, strategy: str) -> Iterator[FolderPair]:
    first, second = (
        {image.relative_to(folder).as_posix(): image.relative_to(root).as_posix() for image in images(folder, True)}
        for folder in (chosen, rejected)
    )
    for name in sorted(first | second):
        if strategy == "instanceprompt":
            prompt = dataset.get("instance_prompt")
            prompts = [prompt if isinstance(prompt, str) else None]
        else:
            text = caption(root, [(folder / name).with_suffix(".txt") for folder in (chosen, rejected)])
            prompts = [text] if text is None or dataset.get("disable_multiline_split") else _lines(text)
        for prompt in prompts:
            yield FolderPair(name, prompt, first.get(name), second.get(name))


def _lines(text: str) -> list[str | None]:
    """Each line is a caption of its own."""
    return [line.strip() for line in text.split("\n") if line.strip()] or [None]
