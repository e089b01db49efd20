"""The settings of a model folder, read before any loader sees them; refused if they name code to be run.

Loaders of diffusers, transformers and peft can import a module, or fetch one, because a file of the model names it. Which
of them do so by default differs between their versions, so what is not plain data is refused before any of them runs.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import PrefloopError, UsageError
from ..core.hub import cannot_fetch

if TYPE_CHECKING:
    from .model import Model

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
# Classes that read from the folder's files which class, or whose code, to use.
CHOOSING = ("AutoModel", "AutoPipeline")
NAMES_CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "_module")
SAFE = (".safetensors", ".safetensors.index.json")
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def config_folder(model: "Model") -> Path:
    """The folder with the settings of a model's pipeline, checked; for a hub id only the settings are fetched.

    Raises:
        PrefloopError: if they cannot be fetched, cannot be read, or name code.
    """
    folder = Path(model.source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model.source, allow_patterns=["*.json"], **model.loading()))
        except (OSError, ValueError) as error:
            raise cannot_fetch("model", model.name, model.source, error) from error
    refuse_code(folder)
    return folder


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if it does not exist.

    Raises:
        PrefloopError: if it contains something else.
    """
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise PrefloopError(f"{path} cannot be read as JSON: {_line(error)}; fetch or save the model again") from error
    if not isinstance(settings, dict):
        raise PrefloopError(f"{path} contains a {type(settings).__name__}, not the settings of a model")
    return settings


def refuse_code(folder: Path) -> None:
    """Check a local folder of a pipeline or of one of its parts. Loads nothing.

    Raises:
        UsageError: if a file names code, or a library that is neither diffusers nor transformers.
        PrefloopError: if a file cannot be read.
    """
    parts = [path for path in folder.iterdir() if path.is_dir() and any(path.glob("*config.json"))]
    for part in (folder, *sorted(parts)):
        for path in part.glob("*.py"):
            raise UsageError(
                f"{path}: code in a model folder is never run; move it elsewhere if the model loads without it"
            )
        for path in sorted(part.glob("*.json")):
            if path.name == INDEX:
                _refuse_classes(path)
            elif path.name == "adapter_config.json" and not _is_adapter_alone(part, folder):
                raise UsageError(f"{path} adds an adapter to a part of the model; save the model with it fused")
            elif path.name.endswith(".safetensors.index.json"):
                _refuse_pickled_shards(path)
            elif path.name.endswith("config.json"):
                _refuse_settings(path)


def _is_adapter_alone(part: Path, folder: Path) -> bool:
    """Whether a part of a folder is a LoRA in peft's layout, as of a result or a checkpoint, and nothing that a loader of
    diffusers or transformers is given. Of its settings, only numbers are read, by `models.lora`."""
    index = read_settings(folder / INDEX)
    is_loaded = bool(index) if part == folder else part.name in index
    has_model = is_loaded or (part / "config.json").exists()
    return (part / "adapter_model.safetensors").is_file() and not has_model


def _refuse_classes(path: Path) -> None:
    index = read_settings(path)
    name = index.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier() or name.startswith(CHOOSING):
        raise UsageError(f"{path}: the pipeline must be a class of diffusers, got {json.dumps(name)[:100]}")
    _refuse_names(path, index)
    for part, value in index.items():
        if not isinstance(value, list) or part.startswith("_"):
            continue
        if value == [None, None]:
            continue
        library, kind = value if len(value) == 2 else (None, None)
        known = isinstance(library, str) and (library in LIBRARIES or _is_pipeline_module(library))
        # all Auto… classes of transformers choose; some of diffusers' do not, such as AutoencoderKL
        choosing = CHOOSING if library != "transformers" else ("Auto",)
        if not known or not isinstance(kind, str) or not kind.isidentifier() or kind.startswith(choosing):
            raise UsageError(
                f"{path}: {part} of the {name} is {json.dumps(value)[:100]}, which does not name a class of {' or '.join(LIBRARIES)}"
            )


def _is_pipeline_module(library: str) -> bool:
    """Whether it is one of diffusers' own pipeline modules, such as stable_diffusion with its safety checker."""
    spec = importlib.util.find_spec("diffusers")
    roots = (spec.submodule_search_locations if spec else None) or []
    return library.isidentifier() and any((Path(root) / "pipelines" / library).is_dir() for root in roots)


def _refuse_settings(path: Path) -> None:
    settings = read_settings(path)
    _refuse_names(path, settings)
    for key, value in _items(settings):
        if key == "quantization_config" and value:
            method = value.get("quant_method") if isinstance(value, dict) else None
            if not str(method).startswith("bitsandbytes"):
                raise UsageError(f"{path}: weights quantized by {method!r} are not loaded; save them unquantized")
        if key == "transformers_weights" and value and not str(value).endswith(SAFE):
            raise UsageError(f"{path}: {key} names {value!r}, which is not a safetensors file of this folder")
        if key in KERNELS and "/" in str(value):
            raise UsageError(f"{path}: {key} names code on the hub, {value!r}; remove the line")


def _refuse_names(path: Path, settings: dict) -> None:
    for key, value in _items(settings):
        if key in NAMES_CODE and value:
            raise UsageError(f"{path}: {key} names code, which is never run; remove it")


def _items(value: object) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from item.items()
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def _refuse_pickled_shards(path: Path) -> None:
    shards = read_settings(path).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else {str(shards)}
    for name in sorted(names):
        if not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise UsageError(f"{path}: {name!r} is not a safetensors file of this folder")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
