"""What `train` left beside its weights (prefloop.json) and where it says a model is: read without trusting any of it."""

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

LARGEST = 16 << 20  # bytes; what `train` writes has a few thousand
MANIFEST = "MANIFEST.json"
"""Of a checkpoint: its step and the hashes of its files."""
DEEPEST = 32  # models in a chain
_MOST_PARENTS = 2  # ".." in a relative path from a result to its base that is worth keeping
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("base_model", "base_model_id", "family", "pipeline_class", "output", "objective", "run_id"), str),
    **dict.fromkeys(("labelers", "config", "versions", "trained_on", "files"), dict),
    "steps": int,
    "n_pairs": int,
}


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of the folder's prefloop.json; None if it has none.

    Raises:
        IntegrityError: if it is not what `train` writes.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise IntegrityError(f"{path} is larger than {LARGEST >> 20} MB; train did not write it")
        result = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, IntegrityError):
            raise
        raise IntegrityError(f"{path} cannot be read as JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(result, dict):
        raise IntegrityError(f"{path} contains a {type(result).__name__}, but train writes an object")
    for name, kind in _TYPES.items():
        if name in result and not isinstance(result[name], kind):
            raise _unexpected(path, name, result[name])
    for settings in (result.get("config", {}), result.get("trained_on", {})):
        if "unet_init" in settings:  # its name in version 0.1
            settings["init_from"] = settings.pop("unet_init")
    for labeler, settings in result.get("labelers", {}).items():
        if not isinstance(settings, dict):
            raise _unexpected(path, f"labelers.{labeler}", settings)
        _require_texts(path, f"labelers.{labeler}.scorers", settings.get("scorers", []))
    _require_texts(path, "files", list(result.get("files", {}).values()))
    return result


def read_manifest(checkpoint: Path) -> tuple[int, dict[str, str]]:
    """The step of a checkpoint, and the sha256 of each of its files.

    Raises:
        IntegrityError: if its manifest is not what `train` writes.
    """
    path = checkpoint / MANIFEST
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        content = json.loads(path.read_text())
        step, files = content["step"], {name: about["sha256"] for name, about in content["files"].items()}
        if type(step) is not int or not all(isinstance(digest, str) for digest in files.values()):
            raise ValueError("it has other types")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} is not what train writes: {error}") from error
    return step, files


def _require_texts(path: Path, name: str, values: Any) -> None:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _unexpected(path, name, values)


def _unexpected(path: Path, name: str, value: object) -> IntegrityError:
    return IntegrityError(f"{path}: {name} is {str(value)[:40]!r}, which train does not write")


def verify_files(folder: Path, recorded: Mapping[str, str], hashes: Mapping[str, str]) -> None:
    """
    Raises:
        IntegrityError: if a file that `train` wrote is missing or has changed.
    """
    for name, expected in recorded.items():
        if name not in hashes:
            raise IntegrityError(f"{folder / name} is missing; {RESULT_FILE} lists it as part of this result")
        if hashes[name] != expected:
            raise IntegrityError(f"{folder / name} has changed since train wrote it; restore it, or train again")


def lineage(model: Model, result: Path) -> dict[str, Any]:
    """What prefloop.json says about the model that a result was trained on: where it is, and its id.

    Args:
        result: the folder of the prefloop.json; the relative path from there is recorded too if the two are close.
    """
    if model.kind == "parts" and model.base is not None:
        parts = {"init_from": model.lora or model.component, "vae": model.vae}
        return lineage(model.base, result) | {
            name: {
                **_location(part.source, part.revision, part.subfolder, result),
                "id": str(part.part_id),
            }
            for name, part in parts.items()
            if part is not None
        }
    if model.built_in:
        return {"built_in": model.name, "id": str(model.model_id)}
    return {**_location(model.source, model.revision, None, result), "id": str(model.model_id)}


def _location(source: str, revision: str | None, subfolder: str | None, result: Path) -> dict[str, Any]:
    kind = "file" if Path(source).is_file() else "folder"
    if kind == "folder" and not Path(source).is_dir():
        return {"hub": source, "revision": revision, "commit": commit_of(source, revision, subfolder)}
    folder = Path(source).resolve()
    relative = os.path.relpath(folder, result.resolve())
    return {kind: str(folder)} | ({"relative": relative} if relative.count("..") <= _MOST_PARENTS else {})


def read_place(
    result: Path, place: Mapping[str, Any], what: str, *, file: bool = False
) -> tuple[list[str], str | None, UUID]:
    """The folders where it may be, or its hub id; the revision of a hub id; and its id.

    Args:
        file: whether it is a file, not a folder.

    Raises:
        IntegrityError: if none of the folders exists.
    """
    path = result / RESULT_FILE
    texts = {name: place.get(name) for name in ("folder", "file", "relative", "hub", "revision", "commit", "id")}
    for name, value in texts.items():
        if not isinstance(value, str | None) or "\0" in (value or ""):
            raise _unexpected(path, f"{what}.{name}", value)
    try:
        identity = UUID(texts["id"] or "")
    except ValueError as error:
        raise _unexpected(path, f"{what}.id", texts["id"]) from error
    named = texts["file" if file else "folder"]
    if (hub := texts["hub"]) and not file:
        if not HUB_ID.fullmatch(hub):
            raise _unexpected(path, f"{what}.hub", hub)
        if Path(hub).exists():
            raise IntegrityError(
                f"{path} names {hub} on the hub, but here is a folder with that name; run from another folder"
            )
        return [hub], texts["commit"] or texts["revision"], identity
    if not named:
        raise _unexpected(path, what, dict(place))
    places = [Path(named)] + ([result / texts["relative"]] if texts["relative"] else [])
    folders = [str(folder) for folder in places if (folder.is_file() if file else folder.is_dir())]
    if not folders:
        raise IntegrityError(
            f"{result} needs {named}, which does not exist; restore it, or put it beside {result} as it was"
        )
    return folders, None, identity
