"""Resolve a model name to its files, what it was trained on, and a content hash. Nothing is loaded."""

import re
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

from ..core.errors import IntegrityError, PrefloopError, UsageError
from ..core.hashing import RESULT_FILE, digests, fingerprint, sha256
from ..core.hub import HUB_ID, commit_of, hub_id
from ..core.ids import canonical, content_id
from .config_files import refuse_code
from .lineage import DEEPEST, MANIFEST, read_manifest, read_place, read_result, verify_files
from .model import COMPONENTS, TITLES, Kind, Model, Part, PartName

BUILT_IN = {"shapes": ("shapes", "weights", "pipeline"), "shapes-flow": ("shapes", "weights", "pipeline-flow")}
LORA_FILE = "pytorch_lora_weights.safetensors"
# of LoRAs that diffusers has no loader for
PEFT_LORA_FILE = "adapter_model.safetensors"
PEFT_SETTINGS = "adapter_config.json"
LORA_FILES = (LORA_FILE, PEFT_LORA_FILE, PEFT_SETTINGS)
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
BEST = "checkpoint-best"
"""Folder in that of a training run: the best of its checkpoints, by a sweep."""
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def find_model(name: str, revision: str | None = None) -> Model:
    """The model that a name means: the built-in one, a folder, or a repository on the hub.

    Raises:
        PrefloopError: if a named folder does not exist, or contains no model.
        IntegrityError: if a file of a result, or what the result was trained on, is gone or has changed.
    """
    return _resolve(name, revision, ())


def _resolve(name: str, revision: str | None, chain: tuple[Path, ...]) -> Model:
    if name in BUILT_IN:
        folder = Path(str(files("prefloop").joinpath(*BUILT_IN[name])))
        if not (folder / "model_index.json").exists():
            raise PrefloopError(f"the built-in model {name!r} is missing from this installation; reinstall prefloop")
        return Model(name, str(folder), fingerprint(folder), built_in=True)
    if _is_local(name, "model", revision):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise PrefloopError(f"{name} is a file; name the folder of a diffusers pipeline")
        try:
            return _from_folder(name, folder, chain)
        except OSError as error:
            raise PrefloopError(f"cannot read the model {name}: {error}") from error
    return Model(name, name, hub_id(name, revision), revision=revision)


def _is_local(name: str, what: str, revision: str | None = None) -> bool:
    """Whether a name is that of something on this disk; False if it is a hub id.

    Raises:
        PrefloopError: if it is neither.
    """
    try:
        if "\0" not in name and Path(name).expanduser().exists():
            return True
    except (OSError, RuntimeError) as error:  # a name that is too long, or of an unknown user
        raise PrefloopError(f"cannot find the {what} {name[:100]!r}: {error}") from error
    known = f"neither {', '.join(BUILT_IN)} nor" if what == "model" else "not"
    if not HUB_ID.fullmatch(name):
        raise PrefloopError(f"cannot find the {what} {name!r}: no such folder, and {known} a hub id like owner/name")
    parent = Path(name).parent
    if parent.is_dir() and commit_of(name, revision) is None:
        raise PrefloopError(
            f"cannot find the {what} {name}: the folder {parent} exists, but {Path(name).name} is not in it; if you mean the "
            f"repository {name} on the hub, run `hf download {name}` first"
        )
    return False


def find_part(name: str, part: PartName) -> Part:
    """A U-Net, transformer or VAE by the name of its folder, of a pipeline's folder, or of a repository on the hub.

    Raises:
        PrefloopError: if there is none.
    """
    if not _is_local(name, TITLES[part]):
        return Part(name, _hub_subfolder(part), hub_id(name, None, part=part))
    folder = Path(name).expanduser()
    refuse_code(folder)
    for candidate, subfolder in ((folder, None), (folder / part, part)):
        if (candidate / "config.json").is_file():
            return Part(str(folder), subfolder, fingerprint(candidate))
    raise UsageError(f"{name} contains no {TITLES[part]}: it has neither config.json nor {part}/config.json")


def _hub_subfolder(part: PartName) -> str | None:
    """A VAE usually has a repository of its own; a U-Net or a transformer is in a pipeline's."""
    return None if part == "vae" else part


def with_parts(model: Model, init_from: str | None = None, vae: str | None = None) -> Model:
    """The model with another U-Net or transformer or with a LoRA, or another VAE; the model itself if none is named.

    Args:
        init_from: a folder, a hub id, or the file of a LoRA.
    """
    lora = None if init_from is None else find_lora_file(init_from)
    return _with(
        model,
        None if init_from is None or lora is not None else find_part(init_from, model.settings.component),
        None if vae is None else find_part(vae, "vae"),
        lora,
    )


def find_lora_file(name: str) -> Part | None:
    """The LoRA in a file; None if the name is not that of a file.

    Raises:
        UsageError: if it is not a safetensors file.
        PrefloopError: if it does not exist.
    """
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    try:
        exists = "\0" not in name and path.is_file()
    except OSError:
        exists = False
    if suffix in _PICKLES and (exists or not HUB_ID.fullmatch(name)):
        raise UsageError(
            f"{name} is a pickle, which can run code when it is loaded; get or save the LoRA as a .safetensors file"
        )
    if suffix == ".safetensors" and not exists and not path.is_dir():
        raise PrefloopError(f"cannot find the LoRA {name}: no such file")
    if not exists:
        return None
    if suffix != ".safetensors":
        raise UsageError(f"{name} is a file, but not a .safetensors file; name a LoRA's file or the folder of a model")
    return lora_file(path)


def lora_file(path: Path) -> Part:
    return Part(str(path), None, content_id(sha256(path).encode()))


def _with(model: Model, component: Part | None, vae: Part | None, lora: Part | None = None) -> Model:
    if component is None and vae is None and lora is None:
        return model
    named: tuple[tuple[PartName, Part | None], ...] = ((model.settings.component, component), ("vae", vae))
    parts: dict[PartName, Part] = {name: part for name, part in named if part is not None}
    ids = {name: part.part_id.hex for name, part in parts.items()}
    ids |= {} if lora is None else {"lora": lora.part_id.hex}
    identity = content_id(canonical({"base": model.model_id.hex} | ids).encode())
    titles = [f"{TITLES[name]} {part.source}" for name, part in parts.items()]
    described = ", ".join(titles + ([] if lora is None else [f"the LoRA {lora.source}"]))
    name = f"{model.name} with {described}"
    return Model(name, name, identity, "parts", model, component, vae, lora)


def _from_folder(name: str, folder: Path, chain: tuple[Path, ...]) -> Model:
    resolved = folder.resolve()
    if resolved in chain:
        raise IntegrityError(f"{folder / RESULT_FILE} says that the model was trained on itself")
    if len(chain) >= DEEPEST:
        raise IntegrityError(f"{chain[0]} was trained on a chain of more than {DEEPEST} models")
    refuse_code(folder)
    if is_checkpoint(folder):
        return _checkpoint(name, folder, (*chain, resolved))
    trained_with = read_result(folder)
    hashes = digests(folder)
    if trained_with is not None:
        verify_files(folder, trained_with.get("files", {}), hashes)
    own = content_id(canonical(hashes).encode())
    kind = _kind(folder, trained_with or {})
    if kind == "pipeline":
        parent = None if trained_with is None else partial(_parent, folder, trained_with, (*chain, resolved))
        return Model(name, str(folder), own, trained_with=trained_with, find_parent=parent)
    if trained_with is None:
        what = f"a {TITLES[kind]}" if kind in COMPONENTS else "a LoRA"
        raise PrefloopError(f"{folder} contains {what} of an unknown base; it lacks a {RESULT_FILE} with 'base_model'")
    base = _parent(folder, trained_with, (*chain, resolved))
    identity = content_id(base.model_id.bytes + own.bytes)
    return Model(name, str(folder), identity, kind, base, trained_with=trained_with)


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a checkpoint inside the folder of a finished training run."""
    return (
        _CHECKPOINT.fullmatch(folder.name) is not None
        and (folder / MANIFEST).is_file()
        and not (folder / RESULT_FILE).exists()
        and (folder.parent / RESULT_FILE).is_file()
    )


def best_checkpoint(model: Model) -> Path | None:
    """Where a sweep kept a better checkpoint of a training run than its result; None if it did not find one."""
    best = Path(model.source) / BEST
    record = read_result(best) if best.is_dir() else None
    if record is None or record.get("steps") == (model.trained_with or {}).get("steps"):
        return None
    return best


def _checkpoint(name: str, folder: Path, chain: tuple[Path, ...]) -> Model:
    """The weights of a checkpoint on what its run was trained on."""
    step, files = read_manifest(folder)
    record = read_result(folder.parent) or {}
    kind = _kind(folder, record)
    weights = {file: digest for file, digest in files.items() if file.startswith(f"{kind}/") or file in LORA_FILES}
    hashes = digests(folder)
    verify_files(folder, weights, hashes)
    base = _parent(folder.parent, record, chain)
    own = content_id(canonical({file: hashes[file] for file in weights}).encode())
    trained_with = {key: value for key, value in record.items() if key != "files"} | {"steps": step, "output": kind}
    return Model(name, str(folder), content_id(base.model_id.bytes + own.bytes), kind, base, trained_with=trained_with)


def _kind(folder: Path, trained_with: dict) -> Kind:
    """What the folder contains; if `train` wrote several kinds of results, the last one."""
    marks: tuple[tuple[Kind, Path], ...] = (
        ("pipeline", folder / "model_index.json"),
        ("lora", folder / LORA_FILE),
        ("lora", folder / PEFT_LORA_FILE),
        *((component, folder / component / "config.json") for component in COMPONENTS),
    )
    kinds: list[Kind] = [kind for kind, path in marks if path.exists()]
    if not kinds and (folder / ".run").is_dir():
        raise PrefloopError(f"{folder} contains an unfinished training run; repeat the command that started it")
    if not kinds:
        raise PrefloopError(
            f"{folder} contains no model: it has no model_index.json, {LORA_FILE}, {PEFT_LORA_FILE}, unet/ or transformer/"
        )
    last: list[Kind] = [kind for kind in kinds if kind == str(trained_with.get("output"))]
    return last[0] if last else kinds[0]


def _parent(folder: Path, trained_with: Mapping[str, Any], chain: tuple[Path, ...]) -> Model:
    """The model that a result was trained on, with the parts that replaced its own.

    Raises:
        IntegrityError: if it is gone or has changed.
    """
    on = trained_with.get("trained_on")
    if on is None:
        return _parent_of_0_1(folder, trained_with, chain)
    base = _base(folder, on, chain)
    names: dict[str, PartName] = {"init_from": base.settings.component, "vae": "vae"}
    start = on.get("init_from")
    lora = _lora_file(folder, start) if isinstance(start, dict) and start.get("file") else None
    parts = {
        name: _part(folder, on[name], name, part)
        for name, part in names.items()
        if on.get(name) is not None and not (lora is not None and name == "init_from")
    }
    return _with(base, parts.get("init_from"), parts.get("vae"), lora)


def _lora_file(folder: Path, place: Mapping[str, Any]) -> Part:
    files, _, identity = read_place(folder, place, "trained_on.init_from", file=True)
    for file in files:
        if Path(file).suffix == ".safetensors" and (candidate := lora_file(Path(file))).part_id == identity:
            return candidate
    raise _changed(folder, files[0])


def _base(folder: Path, on: Mapping[str, Any], chain: tuple[Path, ...]) -> Model:
    if (built_in := on.get("built_in")) is not None:
        if not isinstance(built_in, str) or built_in not in BUILT_IN:
            raise IntegrityError(f"{folder / RESULT_FILE}: unknown built-in model {str(built_in)[:40]!r}")
        base = _resolve(built_in, None, chain)
        if str(base.model_id) == on.get("id"):
            return base
        raise _changed(folder, built_in)
    places, revision, identity = read_place(folder, on, "trained_on")
    if on.get("hub"):
        if hub_id(places[0], on.get("revision")) != identity:
            raise _changed(folder, places[0])
        return Model(places[0], places[0], identity, revision=revision)
    for place in places:
        base = _resolve(place, None, chain)
        if base.model_id == identity:
            return base
    raise _changed(folder, places[0])


def _part(folder: Path, place: Any, name: str, part: PartName) -> Part:
    if not isinstance(place, dict):
        raise IntegrityError(f"{folder / RESULT_FILE}: trained_on.{name} is not an object")
    places, revision, identity = read_place(folder, place, f"trained_on.{name}")
    if place.get("hub"):
        return Part(places[0], _hub_subfolder(part), identity, revision)
    for source in places:
        candidate = find_part(source, part)
        if candidate.part_id == identity:
            return candidate
    raise _changed(folder, places[0])


def _changed(folder: Path, base: object) -> IntegrityError:
    return IntegrityError(
        f"{folder} was trained on {base}, which has changed since or was replaced; restore it, or train again"
    )


def _parent_of_0_1(folder: Path, trained_with: Mapping[str, Any], chain: tuple[Path, ...]) -> Model:
    """`_parent` from a prefloop.json of version 0.1, which has the name of the root, the id of what was trained on, and the
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
            parent = _resolve(place, None, chain)
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
