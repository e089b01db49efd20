"""Tensors in a file that is there whole or not at all, and that tells damage when it is read."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.errors import PrefloopError
from .run_folder.files import atomic_write

_SUM = "crc32"  # finds accidents, which is all that a cache must; half the time of sha256, about that of reading


class DamagedError(Exception):
    """The file's content is not what was written, or nothing says that it is."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """On disk, whole, under its name when this returns; with the mode that the umask leaves.

    Raises:
        PrefloopError: where it cannot be written.
    """
    parts = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(parts, {**about, _SUM: _sum(parts, about)})
    atomic_write(path, data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, which are memory-mapped, and what was said about them; all of the file is read once to verify it.

    Raises:
        DamagedError: where it has no checksum or does not match it.
        FileNotFoundError: where the file does not exist.
    """
    about = read_about(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict
        if about.pop(_SUM, None) != _sum(tensors, about):
            raise DamagedError(str(path))
    except (SafetensorError, ValueError) as error:
        raise DamagedError(str(path)) from error
    return tensors, about


def read_about(path: Path) -> dict[str, str]:
    """What is said about the tensors, not verified.

    Raises:
        DamagedError: where the file cannot be parsed.
        FileNotFoundError: where the file does not exist.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise DamagedError(str(path)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrefloopError(f"cannot read {path}: {error.strerror or error}") from error


def _sum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Of all that a reader sees: names, types, shapes and values, and what is said about them."""
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    found = zlib.crc32(json.dumps([shapes, dict(about)], sort_keys=True).encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
