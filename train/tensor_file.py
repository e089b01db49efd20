"""Tensors in a file that is written atomically and verified by a checksum when it is read."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.errors import PrefloopError
from ..core.files import write_atomic

_CHECKSUM = "crc32"  # a cache needs to detect accidents only; half the time of sha256, about that of reading


class DamagedError(Exception):
    """The file has no checksum, or its content does not match it."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a file atomically, fsynced, with the mode that the umask leaves.

    Args:
        about: metadata, stored in the file and covered by the checksum.

    Raises:
        PrefloopError: if it cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(stored, {**about, _CHECKSUM: _checksum(stored, about)})
    write_atomic(path, data, make_parent=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The memory-mapped tensors and their metadata; the whole file is read once to verify it.

    Raises:
        DamagedError: if it has no checksum or does not match it.
        FileNotFoundError: if the file does not exist.
    """
    file = map_tensors(path)
    file.verify()
    return file.tensors, file.about


@dataclass(frozen=True)
class MappedFile:
    """Memory-mapped tensors and their metadata, which stay readable if the file is deleted."""

    path: Path
    tensors: dict[str, Tensor]
    about: dict[str, str]
    checksum: str | None

    def verify(self) -> None:
        """Read everything once.

        Raises:
            DamagedError: if the file has no checksum or does not match it.
        """
        if self.checksum != _checksum(self.tensors, self.about):
            raise DamagedError(str(self.path))


def map_tensors(path: Path) -> MappedFile:
    """The file's tensors, unverified; only its header is read.

    Raises:
        DamagedError: if the file cannot be parsed.
        FileNotFoundError: if the file does not exist.
    """
    about = read_about(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict
    except (SafetensorError, ValueError) as error:
        raise DamagedError(str(path)) from error
    return MappedFile(path, tensors, about, about.pop(_CHECKSUM, None))


def read_about(path: Path) -> dict[str, str]:
    """The metadata, unverified.

    Raises:
        DamagedError: if the file cannot be parsed.
        FileNotFoundError: if the file does not exist.
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


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Checksum of names, types, shapes, values and metadata."""
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    checksum = zlib.crc32(json.dumps([shapes, dict(about)], sort_keys=True).encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
