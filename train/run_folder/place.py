"""Where the folder of a run may not be: in the way of what the run reads."""

from collections.abc import Iterator
from pathlib import Path

from ...core.errors import UsageError
from ...models.resolve import Model
from ..config import TrainConfig

_OF_A_STORE = ("journal", "images", "cache")


def refuse_both(resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UsageError("--resume goes on with the run in the folder, --overwrite removes it; give one of them")


def refuse_place(config: TrainConfig, store: Path, model: Model) -> None:
    """
    Raises:
        UsageError: where the folder of the result is a file, or is, holds or lies in what the run reads.
    """
    if "\0" in config.output_dir:
        raise UsageError(f"output-dir holds a NUL character: {config.output_dir!r}; name another folder")
    output = Path(config.output_dir)
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; name a folder with --output-dir")
    place, stored = output.resolve(), store.resolve()
    inside = place.parts[len(stored.parts) :][:1] if place.is_relative_to(stored) else ("",)
    if all((place / name).is_dir() for name in _OF_A_STORE) or not inside or inside[0] in _OF_A_STORE:
        raise UsageError(f"{output} is a store, or a part of one; name another folder with --output-dir")
    if stored.is_relative_to(place):
        raise UsageError(f"{output} holds the store {store}; name another folder with --output-dir")
    for what, source in _read(config, model):
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise UsageError(
                f"{output} is, holds or lies in {what}, which this run reads; name another folder with --output-dir"
            )


def _read(config: TrainConfig, model: Model) -> Iterator[tuple[str, Path]]:
    """The folders that the run reads, as they are called."""
    named = [("vae", config.vae), ("unet-init", config.init_from)]
    level: Model | None = model
    while level is not None:
        named.append(("the model", level.source))
        level = level.base
    for what, name in named:
        if name is not None and Path(name).expanduser().is_dir():
            yield f"{what} {name}", Path(name).expanduser().resolve()
