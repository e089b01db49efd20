"""Where the folder of a run must not be: in, above or below anything that the run reads, or in what another one removes."""

import re
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import UsageError
from ...models.model import Model
from ..config import TrainConfig
from .marker import read_marker

_STORE_FOLDERS = ("journal", "images", "cache")
_REMOVED = re.compile(r"checkpoint-\d+|\.checkpoint-\d+\.tmp|\.run|\.result\.tmp|\.previous(\.tmp)?")
"""What a run removes from its folder sooner or later, or takes for its own."""


def refuse_resume_with_overwrite(resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UsageError("--resume continues the run in the folder, --overwrite removes it; give one of them")


def refuse_overlap(config: TrainConfig, store: Path, model: Model) -> None:
    """
    Raises:
        UsageError: if the output folder is a file, or is, holds or lies in something that the run reads or another removes.
    """
    if "\0" in config.output_dir:
        raise UsageError(f"output-dir contains a NUL character: {config.output_dir!r}; name another folder")
    output = Path(config.output_dir)
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; name a folder with --output-dir")
    resolved, store_path = output.resolve(), store.resolve()
    inside = resolved.parts[len(store_path.parts) :][:1] if resolved.is_relative_to(store_path) else ("",)
    if all((resolved / name).is_dir() for name in _STORE_FOLDERS) or not inside or inside[0] in _STORE_FOLDERS:
        raise UsageError(f"{output} is a store or part of one; name another folder with --output-dir")
    if store_path.is_relative_to(resolved):
        raise UsageError(f"{output} contains the store {store}; name another folder with --output-dir")
    for run in resolved.parents:
        below = resolved.relative_to(run).parts[0]
        if _REMOVED.fullmatch(below) and read_marker(run) is not None:
            raise UsageError(
                f"{output} is in {below} of the run in {run}, which removes it; name another folder with --output-dir"
            )
    for what, source in _sources(config, model):
        if resolved.is_relative_to(source) or source.is_relative_to(resolved):
            raise UsageError(
                f"{output} is, contains or lies in {what}, which this run reads; name another folder with --output-dir"
            )


def _sources(config: TrainConfig, model: Model) -> Iterator[tuple[str, Path]]:
    """The folders and files that the run reads, each with a name for messages."""
    named = [("vae", config.vae), ("init-from", config.init_from), ("reference", config.reference)]
    level: Model | None = model
    while level is not None:
        named.append(("the model", level.source))
        level = level.base
    for what, name in named:
        if name is not None and Path(name).expanduser().exists():
            yield f"{what} {name}", Path(name).expanduser().resolve()
