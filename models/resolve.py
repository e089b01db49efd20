"""Resolve a model name to its files, what it was trained on, and a content hash. Nothing is loaded."""

from functools import partial
from importlib.resources import files
from pathlib import Path

from ..core.errors import IntegrityError, PrefloopError
from ..core.hashing import RESULT_FILE, digests, fingerprint
from ..core.hub import hub_id
from ..core.ids import canonical, content_id
from .checkpoints import is_checkpoint
from .config_files import refuse_code
from .lineage import DEEPEST, read_manifest, read_result, verify_files
from .model import COMPONENTS, TITLES, Kind, Model
from .names import BUILT_IN, LORA_FILE, LORA_FILES, PEFT_LORA_FILE, is_local
from .parents import Find, find_parent


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
    if is_local(name, "model", revision):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise PrefloopError(f"{name} is a file; name the folder of a diffusers pipeline")
        try:
            return _from_folder(name, folder, chain)
        except OSError as error:
            raise PrefloopError(f"cannot read the model {name}: {error}") from error
    return Model(name, name, hub_id(name, revision), revision=revision)


def _finder(chain: tuple[Path, ...]) -> Find:
    return lambda name: _resolve(name, None, chain)


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
        parent = (
            None if trained_with is None else partial(find_parent, folder, trained_with, _finder((*chain, resolved)))
        )
        return Model(name, str(folder), own, trained_with=trained_with, find_parent=parent)
    if trained_with is None:
        what = f"a {TITLES[kind]}" if kind in COMPONENTS else "a LoRA"
        raise PrefloopError(f"{folder} contains {what} of an unknown base; it lacks a {RESULT_FILE} with 'base_model'")
    base = find_parent(folder, trained_with, _finder((*chain, resolved)))
    identity = content_id(base.model_id.bytes + own.bytes)
    return Model(name, str(folder), identity, kind, base, trained_with=trained_with)


def _checkpoint(name: str, folder: Path, chain: tuple[Path, ...]) -> Model:
    """The weights of a checkpoint on what its run was trained on."""
    step, files = read_manifest(folder)
    record = read_result(folder.parent) or {}
    kind = _kind(folder, record)
    weights = {file: digest for file, digest in files.items() if file.startswith(f"{kind}/") or file in LORA_FILES}
    hashes = digests(folder)
    verify_files(folder, weights, hashes)
    base = find_parent(folder.parent, record, _finder(chain))
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
