"""Which model a name means, and an id that changes when any of its files does. Nothing is loaded here."""

import hashlib
import json
import os
import socket
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from .errors import PrefloopError
from .ids import canonical, content_id
from .model_files import refuse_code

BUILT_IN = {"shapes": ("shapes", "weights", "pipeline")}
LORA_FILE = "pytorch_lora_weights.safetensors"
RESULT_FILE = "prefloop.json"  # what `train` leaves beside its weights: base model, labels, settings


@dataclass(frozen=True)
class Model:
    """A model by the name the user gave, found."""

    name: str
    source: str
    """A local folder, or a hub id."""
    model_id: UUID
    base: "Model | None" = None
    """For a folder that holds a LoRA or a U-Net alone: the model it belongs to."""
    trained_with: dict | None = None
    """What `train` wrote beside the weights; None where another program made them."""
    revision: str | None = None
    """Of a hub id."""

    @property
    def root(self) -> "Model":
        """The model whose pipeline it is: its base, or itself."""
        return self.base or self

    def loading(self) -> dict:
        """Arguments of diffusers' and transformers' loaders: for a hub id its revision, and no network where there is none."""
        if Path(self.source).is_dir():
            return {}
        return {"revision": self.revision, "local_files_only": not hub_reachable()}


def find_model(name: str, revision: str | None = None) -> Model:
    """The model that a name means: the built-in one, a folder, or a repository on the hub.

    Raises:
        PrefloopError: where a folder is named that is not there, or holds no model.
    """
    if name in BUILT_IN:
        folder = Path(str(files("prefloop").joinpath(*BUILT_IN[name])))
        if not (folder / "model_index.json").exists():
            raise PrefloopError(f"the built-in model {name!r} is missing from this installation; install prefloop anew")
        return Model(name, str(folder), fingerprint(folder))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _in_folder(name, folder)
    if folder.exists():
        raise PrefloopError(f"{name} is a file; name the folder of a diffusers pipeline")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        known = ", ".join(BUILT_IN)
        raise PrefloopError(
            f"there is no model {name!r}: no such folder, and neither {known} nor a hub id like owner/name"
        )
    identity = content_id(canonical({"hub": name, "revision": revision or "main"}).encode())
    return Model(name, name, identity, revision=revision)


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the hub answers at all; the hub's own client tries for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # only the proxy knows
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), timeout):
            return True
    except OSError:
        return False


def _in_folder(name: str, folder: Path) -> Model:
    refuse_code(folder)
    result = folder / RESULT_FILE
    trained_with = json.loads(result.read_text()) if result.exists() else None
    if (folder / "model_index.json").exists():
        return Model(name, str(folder), fingerprint(folder), trained_with=trained_with)
    if (folder / LORA_FILE).exists() or (folder / "unet" / "config.json").exists():
        if trained_with is None:
            what = "a LoRA" if (folder / LORA_FILE).exists() else "a U-Net"
            raise PrefloopError(
                f"{folder} holds {what} of an unknown base; {RESULT_FILE} with 'base_model' is missing there"
            )
        base = find_model(trained_with["base_model"])
        identity = content_id(base.model_id.bytes + fingerprint(folder).bytes)
        return Model(name, str(folder), identity, base=base, trained_with=trained_with)
    raise PrefloopError(f"{folder} holds no model: neither model_index.json, {LORA_FILE} nor unet/ is there")


def fingerprint(folder: Path) -> UUID:
    """Of the names and bytes of the weights and settings below the folder, whatever its own name."""
    digest = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith((".", "checkpoint")) for part in relative.parts)
        if hidden or path.suffix not in (".safetensors", ".json", ".bin", ".txt") or path.name == RESULT_FILE:
            continue
        with open(path, "rb") as file:
            digest[relative.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return content_id(canonical(digest).encode())
