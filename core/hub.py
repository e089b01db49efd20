"""Model repositories on the hub: their ids, and what of them is in the local cache."""

import math
import os
import re
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from .errors import PrefloopError
from .ids import canonical, content_id

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CHECK_AGAIN = 30.0  # seconds for which it is remembered whether the hub answers
_checked: dict[tuple[str, str], tuple[float, bool]] = {}


def hub_id(name: str, revision: str | None, **part: str) -> UUID:
    return content_id(canonical({"hub": name, "revision": revision or "main"} | part).encode())


def commit_of(repository: str, revision: str | None, subfolder: str | None = None) -> str | None:
    """The commit of a revision in the local cache of the hub, or None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("model_index.json", "config.json"):
        below = file if subfolder is None else f"{subfolder}/{file}"
        path = try_to_load_from_cache(repository, below, revision=revision)
        if isinstance(path, str):
            return Path(path).parents[below.count("/")].name
    return None


def loading(source: str, revision: str | None) -> dict[str, Any]:
    """Arguments of diffusers' and transformers' from_pretrained: the revision of a hub id, and offline if the hub does not
    answer."""
    if Path(source).is_dir():
        return {}
    return {"revision": revision, "local_files_only": not hub_reachable()}


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the hub answers at all; its own client would retry for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # only the proxy knows
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    key = (address.scheme, address.netloc)
    checked, answers = _checked.get(key, (-math.inf, False))
    if time.monotonic() - checked > CHECK_AGAIN:
        try:
            port = address.port or (80 if address.scheme == "http" else 443)
            with socket.create_connection((address.hostname or "", port), timeout):
                answers = True
        except OSError:
            answers = False
        _checked[key] = (time.monotonic(), answers)
    return answers


def cannot_fetch(what: str, name: str, source: str, error: Exception) -> PrefloopError:
    """The error to raise if a hub id cannot be loaded; the user may have meant a folder.

    Args:
        what: model, U-Net or VAE.
        name: as the user gave it.
        source: the hub id.
    """
    if hub_reachable():
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        return PrefloopError(f"cannot load the {what} {name}: no such folder exists, and as a hub id: {line}")
    return PrefloopError(
        f"cannot load the {what} {name}: no such folder exists, and as a hub id it is not in the cache, while the hub cannot "
        f"be reached (offline); with network access, run `hf download {source}`"
    )
