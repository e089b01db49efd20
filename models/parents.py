"""What a result was trained on, from the record in its folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from ..core.errors import IntegrityError
from ..core.hashing import RESULT_FILE, fingerprint
from ..core.hub import HUB_ID, hub_id
from ..core.ids import content_id
from .lineage import read_place
from .model import Model, Part, PartName
from .names import BUILT_IN
from .parts import find_part, hub_subfolder, lora_file, with_found_parts, with_parts

Find = Callable[[str], Model]


def find_parent(folder: Path, trained_with: Mapping[str, Any], find: Find) -> Model:
    """The model that a result was trained on, with the parts that replaced its own.

    Args:
        folder: of the result.
        trained_with: its record.
        find: resolves the name of a built-in model or a folder.

    Raises:
        IntegrityError: if it is gone or has changed.
    """
    on = trained_with.get("trained_on")
    if on is None:
        return _parent_of_0_1(folder, trained_with, find)
    base = _base(folder, on, find)
    names: dict[str, PartName] = {"init_from": base.settings.component, "vae": "vae"}
    start = on.get("init_from")
    lora = _lora_file(folder, start) if isinstance(start, dict) and start.get("file") else None
    parts = {
        name: _part(folder, on[name], name, part)
        for name, part in names.items()
        if on.get(name) is not None and not (lora is not None and name == "init_from")
    }
    return with_found_parts(base, parts.get("init_from"), parts.get("vae"), lora)


def _lora_file(folder: Path, place: Mapping[str, Any]) -> Part:
    files, _, identity = read_place(folder, place, "trained_on.init_from", file=True)
    for file in files:
        if Path(file).suffix == ".safetensors" and (candidate := lora_file(Path(file))).part_id == identity:
            return candidate
    raise _changed(folder, files[0])


def _base(folder: Path, on: Mapping[str, Any], find: Find) -> Model:
    if (built_in := on.get("built_in")) is not None:
        if not isinstance(built_in, str) or built_in not in BUILT_IN:
            raise IntegrityError(f"{folder / RESULT_FILE}: unknown built-in model {str(built_in)[:40]!r}")
        base = find(built_in)
        if str(base.model_id) == on.get("id"):
            return base
        raise _changed(folder, built_in)
    places, revision, identity = read_place(folder, on, "trained_on")
    if on.get("hub"):
        if hub_id(places[0], on.get("revision")) != identity:
            raise _changed(folder, places[0])
        return Model(places[0], places[0], identity, revision=revision)
    for place in places:
        base = find(place)
        if base.model_id == identity:
            return base
    raise _changed(folder, places[0])


def _part(folder: Path, place: Any, name: str, part: PartName) -> Part:
    if not isinstance(place, dict):
        raise IntegrityError(f"{folder / RESULT_FILE}: trained_on.{name} is not an object")
    places, revision, identity = read_place(folder, place, f"trained_on.{name}")
    if place.get("hub"):
        return Part(places[0], hub_subfolder(part), identity, revision)
    for source in places:
        candidate = find_part(source, part)
        if candidate.part_id == identity:
            return candidate
    raise _changed(folder, places[0])


def _changed(folder: Path, base: object) -> IntegrityError:
    return IntegrityError(
        f"{folder} was trained on {base}, which has changed since or was replaced; restore it, or train again"
    )


def _parent_of_0_1(folder: Path, trained_with: Mapping[str, Any], find: Find) -> Model:
    """`find_parent` from a prefloop.json of version 0.1, which has the name of the root, the id of what was trained on, and the
    settings of the run.

    Raises:
        IntegrityError: if that does not say what the result was trained on.
    """
    root, identity = trained_with.get("base_model"), trained_with.get("base_model_id")
    if root is None:
        raise IntegrityError(f"{folder / RESULT_FILE} does not say what the model was trained on: no base_model")
    config = trained_with.get("config", {})
    names = [name for name in (root, config.get("model")) if isinstance(name, str) and "\0" not in name]
    revision = config.get("revision")
    for place in dict.fromkeys(place for name in names for place in (name, str(folder.parent / name))):
        if place in BUILT_IN or Path(place).expanduser().is_dir():
            parent = find(place)
        elif HUB_ID.fullmatch(place):
            named = revision if isinstance(revision, str) else None
            parent = Model(place, place, hub_id(place, named), revision=named)
        else:
            continue
        if identity is None or identity in (str(parent.model_id), str(_id_in_0_1(parent))):
            break
    else:
        raise IntegrityError(
            f"{folder} was trained on {config.get('model', root)}, which does not exist, has changed, or was itself trained; "
            "restore it, or train again"
        )
    for option in ("init_from", "vae"):  # 0.1 kept no hash of them
        value = config.get(option)
        if value is not None and (not isinstance(value, str) or not HUB_ID.fullmatch(value) or Path(value).exists()):
            raise IntegrityError(
                f"{folder} was trained with {option.replace('_', '-')} {value} by version 0.1, which kept no hash of it: "
                "whether it has changed is unknown; train again"
            )
    return with_parts(parent, config.get("init_from"), config.get("vae"))


def _id_in_0_1(model: Model) -> UUID:
    """The id that version 0.1 gave a result, as if its base were the root."""
    if model.base is None:
        return model.model_id
    return content_id(model.root.model_id.bytes + fingerprint(Path(model.source)).bytes)
