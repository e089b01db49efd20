"""The files of a tensor cache: which rows each has, and whether it is intact, without reading all of them at every start."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import PrefloopError
from ..core.id_columns import Keys, as_keys, key_bytes
from ..core.row_index import RowIndex
from .tensor_file import DamagedError, MappedFile, map_tensors, read_about, read_tensors, write_tensors

INDEX = "rows.index"
"""What is known of the files of the folder; safe to delete."""
STABLE_AFTER = 2_000_000_000  # ns; a new file may change again within the same clock tick
_NAME = re.compile("[0-9a-f]{32}")  # stems of our files; others are left alone
_UNKNOWN = (0, 0, 0)
Stamp = tuple[int, int, int]  # size, time of the last change of content and of status in ns


class Shards:
    """The safetensors files of one folder, whose rows have ids; finished files never change.

    The ids of all files are kept in INDEX, with the size and times of each file that was read and found intact. Such a file is
    opened without reading it, and its checksum is compared when its first row is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, RowIndex()
        self.damaged: set[str] = set()
        """Files that turned out not to be what was written."""
        self._open: dict[str, MappedFile] = {}
        self._verified: set[str] = set()
        """Of the open ones."""
        self._stamps: dict[str, Stamp] = {}
        names = sorted(path.name for path in folder.glob("*.safetensors") if _NAME.fullmatch(path.stem))
        known = self._read_index()
        for name in names:
            if name in known:
                keys, self._stamps[name] = known[name]
                self.rows.add(name, keys)
            else:
                self._read_ids(name)
        self._written = self._state() if len(known) == len(names) else None

    def _read_ids(self, name: str) -> None:
        try:
            ids = [UUID(identity) for identity in json.loads(read_about(self.folder / name)["ids"])]
        except (DamagedError, KeyError, ValueError, TypeError, AttributeError):
            self.damaged.add(name)
        except FileNotFoundError:
            pass  # another run found it damaged and removed it
        else:
            self.rows.add(name, as_keys(ids))

    def add(self, name: str, keys: Keys) -> None:
        """Add a file that was just written."""
        self._open.pop(name, None)
        self._verified.discard(name)
        stamp = self._stamp(name)
        self.rows.add(name, keys)
        self._open[name] = map_tensors(self.folder / name)
        self._open[name].verify()
        self._verified.add(name)
        self._stamps[name] = stamp

    def add_written(self, name: str) -> None:
        """Add a file that another process has written, and read it once; `damaged` tells."""
        self._read_ids(name)
        if name not in self.damaged:
            self.open(name)

    def open(self, name: str) -> None:
        """Open a file that will be used, and read it once unless it is known to be intact; `damaged` tells."""
        if name in self._open:
            return
        path = self.folder / name
        try:
            stamp = self._stamp(name)
            self._open[name] = map_tensors(path)
            if stamp != self._stamps.get(name):
                self._open[name].verify()
                self._verified.add(name)
                self._stamps[name] = stamp
        except (DamagedError, FileNotFoundError):
            self.damaged.add(name)

    def remove_damaged(self) -> int:
        """Remove the damaged files; returns how many they were."""
        n = len(self.damaged)
        for name in sorted(self.damaged):
            self._forget(name)
        self.damaged.clear()
        return n

    def _forget(self, name: str) -> None:
        self.rows.remove(name)
        self._open.pop(name, None)
        self._stamps.pop(name, None)
        (self.folder / name).unlink(missing_ok=True)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of an open file.

        Raises:
            PrefloopError: if it was damaged since it was last read.
        """
        file = self._open[name]
        if name not in self._verified:
            try:
                file.verify()
            except DamagedError as error:
                self._forget(name)
                raise PrefloopError(
                    f"{file.path} was damaged since it was last read; it is removed, and the same command computes it again"
                ) from error
            self._verified.add(name)
        return file.tensors

    def _stamp(self, name: str) -> Stamp:
        status = (self.folder / name).stat()
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _state(self) -> dict[str, Stamp]:
        """The stamp of each file, unknown while the file is so young that a change might not show in it."""
        now, stamps = time.time_ns(), {name: self._stamps.get(name, _UNKNOWN) for name in self.rows.files()}
        return {name: stamp if now - max(stamp[1:]) > STABLE_AFTER else _UNKNOWN for name, stamp in stamps.items()}

    def write_index(self) -> None:
        """Keep what is known for the next start, if it is more than what is kept."""
        state = self._state()
        if state == self._written:
            return
        files = self.rows.files()
        names = b"".join(bytes.fromhex(name.removesuffix(".safetensors")) for name in files)
        keys = np.concatenate([key_bytes(keys) for keys in files.values()]) if files else np.empty((0, 16), np.uint8)
        tensors = {
            "names": torch.frombuffer(bytearray(names), dtype=torch.uint8)
            if names
            else torch.empty(0, dtype=torch.uint8),
            "counts": torch.tensor([len(keys) for keys in files.values()], dtype=torch.int64),
            "keys": torch.from_numpy(keys),
            "stamps": torch.tensor(list(state.values()), dtype=torch.int64).reshape(-1, 3),
        }
        with suppress(PrefloopError):  # the store may be read-only; the next start reads the files again
            write_tensors(self.folder / INDEX, tensors, {})
            self._written = state

    def _read_index(self) -> dict[str, tuple[Keys, Stamp]]:
        """Ids and stamp of each file as they were; empty if the index does not exist or is damaged."""
        try:
            tensors, _ = read_tensors(self.folder / INDEX)
            counts, keys = tensors["counts"].tolist(), _array(tensors["keys"]).view("S16").ravel()
            names = [f"{name.tobytes().hex()}.safetensors" for name in _array(tensors["names"]).reshape(-1, 16)]
            stamps = [(size, changed, status) for size, changed, status in tensors["stamps"].tolist()]
            ends = np.cumsum(counts)[:-1]
            parts = np.split(keys, ends) if counts else []
            return {name: (part, stamp) for name, part, stamp in zip(names, parts, stamps, strict=True)}
        except (DamagedError, FileNotFoundError, PrefloopError, KeyError, ValueError):
            return {}


def _array(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return tensor.numpy().copy()  # not a view of the file, which may be replaced
