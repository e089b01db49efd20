"""Ids of the prompts a result was trained on, kept beside its weights; they are the same in every store."""

from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from ..core.errors import PrefloopError

FILE = "training_prompts.csv"
_HEADER = "prompt_id"


def write_trained_prompts(folder: Path, prompts: Iterable[UUID]) -> None:
    lines = sorted(prompt.hex for prompt in prompts)
    (folder / FILE).write_text("\n".join([_HEADER, *lines]) + "\n")


def read_trained_prompts(folder: Path) -> set[UUID] | None:
    """None if the result does not say. Of a checkpoint those of its whole run, some of which came later.

    Raises:
        PrefloopError: if the file is damaged.
    """
    path = folder / FILE
    if not path.is_file() and folder.name.startswith("checkpoint-"):
        path = folder.parent / FILE
    if not path.is_file():
        return None
    try:
        header, *lines = path.read_text().splitlines()
        if header != _HEADER:
            raise ValueError(f"its first line is not {_HEADER!r}")
        return {UUID(hex=line) for line in lines}
    except (ValueError, OSError) as error:
        raise PrefloopError(
            f"{path} cannot be read: {error}; move it away, and the prompts count as unknown"
        ) from error
