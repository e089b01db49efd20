"""Data sets of k ranked pictures of a prompt: HPDv2, k in a row, and ImageRewardDB, one in a row. They become pairs."""

from collections.abc import Iterator, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from .batches import Batch
from .pairs import picture_source, values
from .record import Bad, Choice, Judgement, Picture, Record, bad_prompt

Selected = Iterator[tuple[Batch, list[int]]]


def hpd_records(batches: Selected) -> Iterator[Record | Bad]:
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
            split = Path(batch.name).stem  # the pictures of train.json are in train/
            there = paths[row] if isinstance(paths[row], list) else []
            sources = [_below(batch.root, path, split) for path in there]
            yield _record(batch.where(row), prompts[row], sources, order, {})


def imagereward_records(batches: Selected) -> Iterator[Record | Bad]:
    """ImageRewardDB: image or image_path, prompt_id, prompt, rank (1 is the best), classification; the rows of a prompt
    stand together."""
    for _, group in groupby(_rows(batches), key=lambda row: row[1]["prompt_id"]):
        members = list(group)
        where, first, root = members[0]
        sources = [_below(root, row["image"], "") for _, row, _ in members]
        tags = {"classification": str(first["classification"])} if first["classification"] else {}
        yield _record(where, first["prompt"], sources, [row["rank"] for _, row, _ in members], tags)


def _rows(batches: Selected) -> Iterator[tuple[str, dict[str, Any], Path | None]]:
    for batch, rows in batches:
        there = batch.table.column_names
        image = "image" if "image" in there else "image_path"
        names = {"image": image} | {name: name for name in ("prompt_id", "prompt", "rank", "classification")}
        columns = {name: values(batch.table, column if column in there else None) for name, column in names.items()}
        for row in rows:
            yield batch.where(row), {name: column[row] for name, column in columns.items()}, batch.root


def _record(where: str, prompt: Any, sources: list, ranks: Sequence, tags: dict[str, str]) -> Record | Bad:
    if reason := bad_prompt(prompt):
        return Bad(where, reason)
    if len(sources) < 2:
        return Bad(where, "fewer than two pictures")
    if len(_numbers(ranks)) != len(sources):
        return Bad(where, "not a rank for each picture")
    if wrong := next((source for source in sources if isinstance(source, str)), None):
        return Bad(where, wrong)
    judgements = [Judgement(i, j, _choice(ranks[i], ranks[j]), None) for i, j in combinations(range(len(sources)), 2)]
    return Record(where, prompt, [Picture(source) for source in sources], judgements, tags)


def _numbers(found: Any) -> list[float]:
    return [value for value in found if isinstance(value, int | float)] if isinstance(found, list) else []


def _choice(rank: float, other: float) -> Choice:
    return "first" if rank < other else "second" if rank > other else "tie"


def _below(root: Path | None, value: Any, split: str) -> bytes | Path | str:
    """The picture, where the path is as in the file, or in the split's folder, or beside it under its last name."""
    found = picture_source(value, root)
    if not isinstance(found, Path) or found.is_file():
        return found
    for other in (f"{split}/{value}", f"{split}/{Path(value).name}", f"{Path(value).parent.name}/{Path(value).name}"):
        elsewhere = picture_source(other, root)
        if isinstance(elsewhere, Path) and elsewhere.is_file():
            return elsewhere
    return found
