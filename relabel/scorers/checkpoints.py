"""Find a scorer's files, hash them, and load them without running anything that is in them."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...core.errors import IntegrityError, PrefloopError, UsageError
from ...core.hashing import sha256
from ...core.hub import hub_reachable

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9])?")


def built_in(scorer: str) -> Path:
    """The folder of the built-in world's weights for a scorer."""
    return Path(str(files("prefloop").joinpath("shapes", "weights", scorer)))


def find(scorer: str, weights: str | None, default: str) -> Path:
    """The folder or file that `weights` means: "shapes", a path, a hub id, or the default hub id where it is None.

    A hub id may name one file: owner/name/file.pt.

    Raises:
        PrefloopError: where it is not there and cannot be fetched; the message says how to get it.
    """
    if weights == "shapes":
        folder = built_in(scorer)
        if not folder.is_dir():
            known = ", ".join(sorted(path.name for path in folder.parent.iterdir() if path.name != "pipeline"))
            raise UsageError(f"the built-in world has no weights for {scorer}, only for {known}")
        return folder
    if not weights:
        return from_hub(scorer, default)
    local = Path(weights).expanduser()
    if _exists(local):
        return local
    if not _may_be_on_hub(weights):
        raise PrefloopError(
            f"there are no weights at {weights!r} for {scorer}; name a folder, a file, a hub id such as owner/name, "
            "or shapes"
        )
    return from_hub(scorer, weights)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False


def _may_be_on_hub(wanted: str) -> bool:
    """Whether a name that is not here can be owner/name, or owner/name/file of weights: what begins as a local path does
    is one, even where its end is missing."""
    owner, _, rest = wanted.partition("/")
    name, _, file = rest.partition("/")
    if not all(_HUB_NAME.fullmatch(part) for part in (owner, name)) or _exists(Path(owner)):
        return False
    return not file or ("/" not in file and _HUB_NAME.fullmatch(file) is not None and file.endswith(WEIGHTS))


def from_hub(scorer: str, wanted: str) -> Path:
    """A repository or one of its files in the hub's local cache; fetched where it is not there yet.

    Raises:
        PrefloopError: where it is neither there nor can be fetched; the message says why and how to fetch it.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, file = "/".join(wanted.split("/")[:2]), "/".join(wanted.split("/")[2:])
    kept = ["*.json", "*.txt", "*.safetensors"]
    for local_only in (True, False):
        if not local_only and not hub_reachable():
            break
        try:
            if file:
                return Path(hf_hub_download(repository, file, local_files_only=local_only, etag_timeout=3))
            folder = snapshot_download(repository, allow_patterns=kept, local_files_only=local_only, etag_timeout=3)
            if any(Path(folder).glob("*.safetensors")) or not local_only:
                return Path(folder)
        except (LocalEntryNotFoundError, FileNotFoundError):
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise PrefloopError(f"cannot fetch {wanted} for {scorer}: {line}") from error
    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub does not answer"
    fetch = " ".join(["hf download", repository, *([file] if file else [])])
    raise PrefloopError(
        f"{wanted} for {scorer} is neither a local path nor in the hub's cache, and prefloop is offline: {why}. "
        f"With a network, `{fetch}` fetches it; `--checkpoint shapes` takes the built-in world's"
    )


def checked(path: Path, pins: dict[str, str]) -> str:
    """The file's sha256; where its name is pinned, it must be the pinned one.

    Raises:
        IntegrityError: where it is another.
    """
    if not path.is_file():
        raise PrefloopError(f"there is no file {path}")
    try:
        found = sha256(path)
    except OSError as error:
        raise PrefloopError(f"cannot read {path}: {error.strerror}") from error
    pinned = pins.get(path.name)
    if pinned is not None and found != pinned:
        raise IntegrityError(
            f"{path} is not the published file: sha256 {found[:16]}…, expected {pinned[:16]}…; fetch it again"
        )
    return found


def revision(*parts: str) -> str:
    """12 hex digits that change with any of the parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def load_tensors(path: Path) -> dict[str, Any]:
    """A state dict from .safetensors, or from a torch file in which nothing but tensors is accepted.

    Raises:
        IntegrityError: where the file is anything else.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _unloadable(path) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise IntegrityError(f"{path} holds no state dict")
    return state


def one_tensor(path: Path, name: str) -> Any:
    """One tensor of a .safetensors file, without reading the others."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        if "does not contain tensor" in str(error):
            raise IntegrityError(f"{path} lacks {name}; it is not this scorer's file") from error
        raise _unloadable(path) from error


def _unloadable(path: Path) -> IntegrityError:
    what = "is an HTML page" if _looks_like_html(path) else "holds no weights that can be loaded safely"
    return IntegrityError(f"{path} {what}; fetch it again")


def _looks_like_html(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
