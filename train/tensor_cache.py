"""Rows of tensors in memory-mapped files, written by one process or by several that share a folder."""

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from uuid import UUID

import torch
from torch import Tensor

from ..core.errors import PrefloopError, cannot_write
from ..core.ids import content_id
from ..core.progress import progress
from ..core.signals import StopSignal, interrupted
from ..store import IntegrityError
from .distributed import VISIBLE_WITHIN, visible
from .ranks import ALONE, Ranks
from .tensor_file import DamagedError, read_about, read_tensors, write_tensors

SHARD = 1024  # rows per file
_NAME = re.compile("[0-9a-f]{32}")  # stems of our files; others are left alone
LENGTH = ".length"  # ends the name of the tensor with the lengths of ragged rows
Rows = tuple[list[UUID], Mapping[str, Tensor | list[Tensor]]]


class TensorCache:
    """Rows of tensors by id, in the safetensors files of one folder; finished files never change.

    A file is verified before its first row is read. If it is damaged or has no checksum, it is removed and its rows count as
    missing again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._place: dict[UUID, tuple[Path, int]] = {}
        self._open: dict[Path, dict[str, Tensor]] = {}
        """Verified files."""
        self._damaged: list[Path] = []
        for path in sorted(folder.glob("*.safetensors")):
            if _NAME.fullmatch(path.stem):
                self._index(path)

    def _index(self, path: Path) -> None:
        try:
            ids = [UUID(identity) for identity in json.loads(read_about(path)["ids"])]
        except (DamagedError, KeyError, ValueError, TypeError, AttributeError):
            self._damaged.append(path)
        except FileNotFoundError:
            pass  # another run found it damaged and removed it
        else:
            self._place |= {identity: (path, at) for at, identity in enumerate(ids)}

    def missing(self, ids: Iterable[UUID]) -> list[UUID]:
        """The ids that have no row, or whose file is damaged."""
        ids = list(ids)
        for path in {self._place[identity][0] for identity in ids if identity in self._place}:
            self._verify(path)
        if self._damaged:
            n, names = len(self._damaged), {path.name for path in self._damaged}
            self._place = {identity: place for identity, place in self._place.items() if place[0].name not in names}
            for path in self._damaged:
                path.unlink(missing_ok=True)
            self._damaged.clear()
            files = "1 file is" if n == 1 else f"{n} files are"
            print(
                f"{files} damaged, or without a checksum, in {self.folder}; removed, and what is needed of it is computed again",
                file=sys.stderr,
            )
        return [identity for identity in ids if identity not in self._place]

    def _verify(self, path: Path) -> None:
        if path in self._open:
            return
        try:
            self._open[path], _ = read_tensors(path)
        except (DamagedError, FileNotFoundError):
            self._damaged.append(path)

    def add(self, ids: Sequence[UUID], tensors: dict[str, Tensor]) -> str:
        """Write rows as one file; its name."""
        path = self.folder / f"{content_id(''.join(identity.hex for identity in ids).encode()).hex}.safetensors"
        write_tensors(path, tensors, {"ids": json.dumps([str(identity) for identity in ids])})
        self._open[path], _ = read_tensors(path)
        self._index(path)
        return path.name

    def add_file(self, name: str, wait: float = VISIBLE_WITHIN) -> None:
        """Take in a file that another process has written to the folder.

        Args:
            wait: seconds until it must be visible.

        Raises:
            IntegrityError: if it cannot be seen or is damaged.
        """
        path = self.folder / name
        if not visible(path, wait):
            raise IntegrityError(
                f"{path}, which another process has written, cannot be seen here; put the store on a file system that "
                "all nodes share"
            )
        self._index(path)
        self._verify(path)
        if path in self._damaged:
            raise IntegrityError(f"{path}, which another process has just written, is damaged")

    def rows(self, name: str, ids: Sequence[UUID]) -> Tensor:
        """The tensor `name` of the ids, stacked in their order; none may be missing."""
        places = [self._place[identity] for identity in ids]
        return torch.stack([self._open[path][name][at] for path, at in places])

    def ragged(self, name: str, ids: Sequence[UUID]) -> list[Tensor]:
        """The tensor `name` of the ids, whose lengths may differ, without padding."""
        rows = []
        for path, at in (self._place[identity] for identity in ids):
            tensors = self._open[path]
            length = tensors[f"{name}{LENGTH}"][at] if f"{name}{LENGTH}" in tensors else None
            rows.append(tensors[name][at] if length is None else tensors[name][at, : int(length)])
        return rows

    def fill(
        self,
        missing: Sequence[UUID],
        rows_of: Callable[[Sequence[UUID]], Rows],
        what: str,
        batch: int,
        stop: StopSignal | None = None,
        ranks: Ranks = ALONE,
        read_ahead: Callable[[Sequence[UUID]], object] | None = None,
    ) -> None:
        """Add the missing rows, a batch at a time; `rows_of` may leave out rows that cannot be computed.

        Several processes compute a batch each and then hear of each other's failures and signals, so that none waits longer
        than for a batch, and what is missing of an interrupted cache is the end of the list, in the same batches.

        Args:
            missing: the same in all processes, as `open_cache` gives it.
            read_ahead: called with the ids of the next batch before the rows of one are computed.

        Raises:
            Interrupted: after the batch in which a signal arrived in any process; what was computed is kept.
        """
        if not missing:
            return
        stop = stop or StopSignal()
        batches = [missing[at : at + batch] for at in range(0, len(missing), batch)]
        n_rounds = math.ceil(len(batches) / ranks.world)
        mine = [*ranks.share(batches), []]  # perhaps one less than the others have
        per_file = max(SHARD // batch, 1)
        names: list[str] = []
        with progress(len(missing), what) if ranks.is_main else nullcontext() as bar:
            ids: list[UUID] = []
            parts: list[Mapping[str, Tensor | list[Tensor]]] = []

            def compute(number: int) -> None:
                if read_ahead is not None and number + 1 < len(mine):
                    read_ahead(mine[number + 1])
                computed, tensors = rows_of(mine[number]) if mine[number] else ([], {})
                if computed:
                    ids.extend(computed)
                    parts.append(tensors)

            def write() -> None:
                if ids:
                    names.append(self.add(ids, joined(parts)))
                ids.clear()
                parts.clear()

            try:
                for number in range(n_rounds):
                    ranks.together(lambda number=number: compute(number))
                    n_done = min((number + 1) * ranks.world * batch, len(missing))
                    if bar is not None:
                        bar.update(n_done - bar.n)
                    signal = ranks.signal(stop)
                    if signal or (number + 1) % per_file == 0 or number + 1 == n_rounds:
                        ranks.together(write)
                    if signal:
                        raise ranks.said_once(interrupted(f"{what}: {n_done} of {len(missing)} are kept", signal))
            except Exception:
                with suppress(PrefloopError):  # the first error is the one to tell
                    write()
                raise
        written = ranks.gather(names)
        ranks.together(lambda: [self.add_file(name) for of in written for name in of if name not in names])


def open_cache(folder: Path, ids: Collection[UUID], ranks: Ranks = ALONE) -> tuple[TensorCache, list[UUID]]:
    """A cache and which of the ids have no row in it, as the main process finds it: the others open the folder when it has
    removed what is damaged."""
    opened: list[TensorCache] = []

    def open_and_verify() -> bytes:
        opened.append(TensorCache(folder))
        return b"".join(identity.bytes for identity in opened[0].missing(ids))

    found = ranks.from_main(ranks.together(lambda: open_and_verify() if ranks.is_main else b""))
    ranks.together(lambda: None if ranks.is_main else open_and_verify())
    return opened[0], [UUID(bytes=found[at : at + 16]) for at in range(0, len(found), 16)]


def joined(parts: Sequence[Mapping[str, Tensor | list[Tensor]]]) -> dict[str, Tensor]:
    """The rows of several batches; ragged ones are padded, with their lengths beside them."""
    tensors: dict[str, Tensor] = {}
    for name in parts[0]:
        rows = [row for part in parts for row in part[name]]
        if all(isinstance(part[name], Tensor) for part in parts):
            tensors[name] = torch.stack(rows)
        else:
            tensors[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            tensors[f"{name}{LENGTH}"] = torch.tensor([len(row) for row in rows])
    return tensors
