"""Find a scorer's files, hash them, and load them without executing anything in them."""

import hashlib
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ...core.errors import IntegrityError, PrefloopError, UsageError
from ...core.hashing import sha256
from ...core.hub import hub_reachable

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9])?")


def built_in(scorer: str) -> Path:
    """The folder of the built-in world's weights for a scorer."""
    return Path(str(files("prefloop").joinpath("shapes", "weights", scorer)))


def find(scorer: str, checkpoint: str) -> Path:
    """The folder or file that a checkpoint means: "shapes", a path, or a hub id.

    A hub id may name one file: owner/name/file.pt.

    Raises:
        PrefloopError: if it does not exist and cannot be downloaded; the message says how to get it.
    """
    if checkpoint == "shapes":
        folder = built_in(scorer)
        if not folder.is_dir():
            known = ", ".join(
                sorted(path.name for path in folder.parent.iterdir() if not path.name.startswith("pipeline"))
            )
            raise UsageError(f"the built-in world has no weights for {scorer}, only for {known}")
        return folder
    kind = kind_of(checkpoint)
    if kind is None:
        raise PrefloopError(nothing_at(checkpoint, scorer))
    return Path(checkpoint).expanduser() if kind == "local" else from_hub(scorer, checkpoint)


def kind_of(checkpoint: str) -> Literal["local", "hub"] | None:
    """Whether a checkpoint is a folder or file that exists, or else can be a hub id; None if it is neither."""
    if _exists(Path(checkpoint).expanduser()):
        return "local"
    return "hub" if _may_be_on_hub(checkpoint) else None


def nothing_at(checkpoint: str, scorer: str) -> str:
    return (
        f"no checkpoint at {checkpoint!r} for {scorer}; give a folder, a file, a hub id such as owner/name, or shapes"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False


def _may_be_on_hub(name: str) -> bool:
    """Whether a name can be owner/name, or owner/name/file of weights. A name whose first part exists here is a local
    path, even if the rest of it is missing."""
    owner, _, path = name.partition("/")
    repository, _, file = path.partition("/")
    if not all(_HUB_NAME.fullmatch(part) for part in (owner, repository)) or _exists(Path(owner)):
        return False
    return not file or ("/" not in file and _HUB_NAME.fullmatch(file) is not None and file.endswith(WEIGHTS_SUFFIXES))


def from_hub(scorer: str, name: str) -> Path:
    """A repository or one of its files in the local cache of the hub; downloaded if it is not there yet.

    Raises:
        PrefloopError: if it cannot be downloaded; the message says why, and how to download it.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    patterns = ["*.json", "*.txt", "*.safetensors"]
    for local_only in (True, False):
        if not local_only and not hub_reachable():
            break
        try:
            if file:
                return Path(hf_hub_download(repository, file, local_files_only=local_only, etag_timeout=3))
            folder = snapshot_download(repository, allow_patterns=patterns, local_files_only=local_only, etag_timeout=3)
            if any(Path(folder).glob("*.safetensors")) or not local_only:
                return Path(folder)
        except (LocalEntryNotFoundError, FileNotFoundError):
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise PrefloopError(f"cannot download {name} for {scorer}: {line}") from error
    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub does not answer"
    shapes = "; `--checkpoint shapes` uses the built-in world's" if built_in(scorer).is_dir() else ""
    raise PrefloopError(
        f"{name} for {scorer} is neither a local path nor in the hub's cache, and prefloop is offline: {why}. "
        f"With a network, {hub_command(name)} downloads it{shapes}"
    )


def hub_command(name: str) -> str:
    """What downloads owner/name or owner/name/file, in backquotes."""
    owner, repository, *file = name.split("/", 2)
    return f"`{' '.join(['hf download', f'{owner}/{repository}', *file])}`"


def cached(name: str, cache: Path | None = None) -> Path | None:
    """The folder or file in the hub's local cache that `from_hub` gives without a network; None if it is not there.

    Args:
        name: owner/name, or owner/name/file.
        cache: of the hub; the one that its client uses if not given.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    owner, repository, *file = name.split("/", 2)
    try:
        if file:
            path = try_to_load_from_cache(f"{owner}/{repository}", *file, cache_dir=cache)
            return Path(path) if isinstance(path, str) and Path(path).is_file() else None
        folder = Path(snapshot_download(f"{owner}/{repository}", cache_dir=cache, local_files_only=True))
        return folder if any(folder.glob("*.safetensors")) else None
    except (LocalEntryNotFoundError, FileNotFoundError, HFValidationError):
        return None


def download_file(repository: str, file: str, *, optional: bool) -> Path | None:
    """One file of the hub in its local cache, downloaded or continued if it is not whole.

    Returns:
        None if it is optional and the repository does not have it.

    Raises:
        PrefloopError: if the hub refuses or breaks off.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        endpoint = os.environ.get("HF_ENDPOINT") or None  # that which `hub_reachable` asks
        return Path(hf_hub_download(repository, file, endpoint=endpoint, etag_timeout=10))
    except Exception as error:  # of the HTTP library that this version of the client uses
        if optional and isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise PrefloopError(f"cannot download {file} of {repository}: {line}") from error


def checked(path: Path, pins: dict[str, str]) -> str:
    """The file's sha256. A file whose name is pinned must have the pinned one.

    Raises:
        IntegrityError: if it has another.
    """
    if not path.is_file():
        raise PrefloopError(f"no file {path}")
    try:
        digest = sha256(path)
    except OSError as error:
        raise PrefloopError(f"cannot read {path}: {error.strerror}") from error
    pinned = pins.get(path.name)
    if pinned is not None and digest != pinned:
        raise IntegrityError(
            f"{path} is not the published file: sha256 {digest[:16]}…, expected {pinned[:16]}…; download it again"
        )
    return digest


def revision(*parts: str) -> str:
    """12 hex digits that change with any of the parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def load_tensors(path: Path, digest: str | None = None) -> dict[str, Any]:
    """A state dict from a .safetensors file, or from a torch file that contains only tensors.

    Args:
        digest: the sha256 that the scorer's revision was made from.

    Raises:
        IntegrityError: if the file is anything else, or no longer has this sha256.
    """
    _refuse_changed(path, digest)
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
        raise IntegrityError(f"{path} does not contain a state dict; download it again")
    return state


def load_tensor(path: Path, name: str, digest: str | None = None) -> Any:
    """One tensor of a .safetensors file, without reading the others; `digest` as for `load_tensors`."""
    _refuse_changed(path, digest)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        if "does not contain tensor" in str(error):
            raise IntegrityError(
                f"{path} has no tensor {name}: it is not this scorer's file; give another --checkpoint"
            ) from error
        raise _unloadable(path) from error


def _refuse_changed(path: Path, digest: str | None) -> None:
    """A scorer is created when a stage starts and loads its weights at the first image, which can be hours later."""
    if digest is not None and checked(path, {}) != digest:
        raise IntegrityError(
            f"{path} has changed since this run began, so that its scores would be stored under the revision of the "
            "earlier file; start the command again"
        )


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of the tensors of a .safetensors file, from its header alone."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise PrefloopError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no dict
    except (SafetensorError, OSError) as error:
        raise _unloadable(path) from error


def _unloadable(path: Path) -> IntegrityError:
    what = "is an HTML page" if _looks_like_html(path) else "does not contain weights that can be loaded safely"
    return IntegrityError(f"{path} {what}; download it again")


def _looks_like_html(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
