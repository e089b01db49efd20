"""What `train` left beside its weights (prefloop.json) and where it says a model lies: read without trusting any of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from ..core.errors import IntegrityError
from ..core.hashing import RESULT_FILE
from ..core.hub import HUB_ID, commit_of
from .model import Model

LARGEST = 16 << 20  # bytes; one of `train` has a few thousand
DEEPEST = 32  # models trained on one another
_APART = 3  # folders up to which a result and its base lie together
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("base_model", "base_model_id", "family", "pipeline_class", "output", "objective", "run_id"), str),
    **dict.fromkeys(("labelers", "config", "versions", "trained_on", "files"), dict),
    "steps": int,
    "n_pairs": int,
}


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of the folder's prefloop.json, or None where the folder has none.

    Raises:
        IntegrityError: where it is not what `train` writes.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise IntegrityError(f"{path} is larger than {LARGEST >> 20} MB; train wrote something else there")
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, IntegrityError):
            raise
        raise IntegrityError(f"{path} cannot be read as JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{path} holds a {type(found).__name__} where train writes an object")
    for name, kind in _TYPES.items():
        if name in found and not isinstance(found[name], kind):
            raise _odd(path, name, found[name])
    for settings in (found.get("config", {}), found.get("trained_on", {})):
        if "unet_init" in settings:  # its name in version 0.1
            settings["init_from"] = settings.pop("unet_init")
    for labeler, settings in found.get("labelers", {}).items():
        if not isinstance(settings, dict):
            raise _odd(path, f"labelers.{labeler}", settings)
        _texts(path, f"labelers.{labeler}.scorers", settings.get("scorers", []))
    _texts(path, "files", list(found.get("files", {}).values()))
    return found


def _texts(path: Path, name: str, values: Any) -> None:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _odd(path, name, values)


def _odd(path: Path, name: str, value: object) -> IntegrityError:
    return IntegrityError(f"{path}: {name} is {str(value)[:40]!r}, which train does not write there")


def verify_files(folder: Path, recorded: Mapping[str, str], found: Mapping[str, str]) -> None:
    """
    Raises:
        IntegrityError: where a file that `train` wrote is missing or has changed.
    """
    for name, expected in recorded.items():
        if name not in found:
            raise IntegrityError(f"{folder / name} is missing; {RESULT_FILE} names it as a part of this result")
        if found[name] != expected:
            raise IntegrityError(f"{folder / name} has changed since train wrote it; restore it, or train again")


def lineage(model: Model, result: Path) -> dict[str, Any]:
    """What prefloop.json says about the model that a result was trained on: where it lies, and its id.

    Args:
        result: the folder of the prefloop.json; the way from there is written too where the two lie together.
    """
    if model.kind == "parts" and model.base is not None:
        parts = {"init_from": model.unet, "vae": model.vae}
        return lineage(model.base, result) | {
            name: {
                **_written(part.source, part.revision, part.subfolder, result),
                "id": str(part.part_id),
            }
            for name, part in parts.items()
            if part is not None
        }
    if model.built_in:
        return {"built_in": model.name, "id": str(model.model_id)}
    return {**_written(model.source, model.revision, None, result), "id": str(model.model_id)}


def _written(source: str, revision: str | None, subfolder: str | None, result: Path) -> dict[str, Any]:
    if not Path(source).is_dir():
        return {"hub": source, "revision": revision, "commit": commit_of(source, revision, subfolder)}
    folder = Path(source).resolve()
    relative = os.path.relpath(folder, result.resolve())
    return {"folder": str(folder)} | ({"relative": relative} if relative.count("..") < _APART else {})


def read_place(result: Path, place: Mapping[str, Any], what: str) -> tuple[list[str], str | None, UUID]:
    """The folders where it may lie, or its hub id; the revision of a hub id; and its id.

    Raises:
        IntegrityError: where nothing is there.
    """
    path = result / RESULT_FILE
    texts = {name: place.get(name) for name in ("folder", "relative", "hub", "revision", "commit", "id")}
    for name, value in texts.items():
        if not isinstance(value, str | None) or "\0" in (value or ""):
            raise _odd(path, f"{what}.{name}", value)
    try:
        identity = UUID(texts["id"] or "")
    except ValueError as error:
        raise _odd(path, f"{what}.id", texts["id"]) from error
    if hub := texts["hub"]:
        if not HUB_ID.fullmatch(hub):
            raise _odd(path, f"{what}.hub", hub)
        if Path(hub).exists():
            raise IntegrityError(
                f"{path} names {hub} on the hub, and a folder of that name is here; go to another folder"
            )
        return [hub], texts["commit"] or texts["revision"], identity
    if not texts["folder"]:
        raise _odd(path, what, dict(place))
    places = [Path(texts["folder"])] + ([result / texts["relative"]] if texts["relative"] else [])
    there = [str(folder) for folder in places if folder.is_dir()]
    if not there:
        raise IntegrityError(
            f"{result} needs {texts['folder']}, which is not there; put it back, or beside {result} as it was"
        )
    return there, None, identity
