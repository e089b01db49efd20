"""Datasets of k ranked images per prompt, turned into pairs: HPDv2 with k images per row, ImageRewardDB with one per row."""

from collections.abc import Iterator, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from .batches import Batch
from .pairs import image_source, values
from .record import Choice, Excluded, Preference, Record, SourceImage, prompt_problem

SelectedRows = Iterator[tuple[Batch, list[int]]]


def hpd_records(batches: SelectedRows) -> Iterator[Record | Excluded]:
    """HPDv2: prompt, file_path or image_path, and human_preference (1 is preferred) or rank (1 is the best)."""
    for batch, rows in batches:
        names = batch.table.column_names
        paths = values(batch.table, "file_path" if "file_path" in names else "image_path")
        ranks, preferences = (
            values(batch.table, name if name in names else None) for name in ("rank", "human_preference")
        )
        prompts = values(batch.table, "prompt")
        for row in rows:
            order = ranks[row] or [-preference for preference in _numbers(preferences[row])]
            split = Path(batch.name).stem  # the images of train.json are in train/
            images = paths[row] if isinstance(paths[row], list) else []
            sources = [_image_below(batch.root, path, split) for path in images]
            yield _record(batch.where(row), prompts[row], sources, order, {})


def imagereward_records(batches: SelectedRows) -> Iterator[Record | Excluded]:
    """ImageRewardDB: image or image_path, prompt_id, prompt, rank (1 is the best), classification; the rows of a prompt
    are adjacent."""
    for _, group in groupby(_rows(batches), key=lambda row: row[1]["prompt_id"]):
        members = list(group)
        where, first, root = members[0]
        sources = [_image_below(root, row["image"], "") for _, row, _ in members]
        tags = {"classification": str(first["classification"])} if first["classification"] else {}
        yield _record(where, first["prompt"], sources, [row["rank"] for _, row, _ in members], tags)


def _rows(batches: SelectedRows) -> Iterator[tuple[str, dict[str, Any], Path | None]]:
    for batch, rows in batches:
        existing = batch.table.column_names
        image = "image" if "image" in existing else "image_path"
        names = {"image": image} | {name: name for name in ("prompt_id", "prompt", "rank", "classification")}
        columns = {name: values(batch.table, column if column in existing else None) for name, column in names.items()}
        for row in rows:
            yield batch.where(row), {name: column[row] for name, column in columns.items()}, batch.root


def _record(where: str, prompt: Any, sources: list, ranks: Sequence, tags: dict[str, str]) -> Record | Excluded:
    if reason := prompt_problem(prompt):
        return Excluded(where, reason)
    if len(sources) < 2:
        return Excluded(where, "fewer than two images")
    if len(_numbers(ranks)) != len(sources):
        return Excluded(where, "not one rank per image")
    if wrong := next((source for source in sources if isinstance(source, str)), None):
        return Excluded(where, wrong)
    preferences = [Preference(i, j, _choice(ranks[i], ranks[j]), None) for i, j in combinations(range(len(sources)), 2)]
    return Record(where, prompt, [SourceImage(source) for source in sources], preferences, tags)


def _numbers(values: Any) -> list[float]:
    return [value for value in values if isinstance(value, int | float)] if isinstance(values, list) else []


def _choice(rank: float, other: float) -> Choice:
    return "first" if rank < other else "second" if rank > other else "tie"


def _image_below(root: Path | None, value: Any, split: str) -> bytes | Path | str:
    """The image at the path as written, or else in the split's folder, or with only its last folder kept."""
    source = image_source(value, root)
    if not isinstance(source, Path) or source.is_file():
        return source
    for other in (f"{split}/{value}", f"{split}/{Path(value).name}", f"{Path(value).parent.name}/{Path(value).name}"):
        candidate = image_source(other, root)
        if isinstance(candidate, Path) and candidate.is_file():
            return candidate
    return source
