"""Rows of tensors in memory-mapped files, written by one process or by several that share a folder."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import PrefloopError, cannot_write
from ..core.id_columns import Keys, as_keys
from ..core.ids import content_id
from ..core.progress import progress
from ..core.signals import StopSignal, interrupted
from ..store import IntegrityError
from .distributed import VISIBLE_WITHIN, visible
from .ranks import ALONE, Ranks
from .shards import Shards
from .tensor_file import write_tensors

SHARD = 1024  # rows per file
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
        self._shards = Shards(folder)

    def missing(self, ids: Iterable[UUID]) -> list[UUID]:
        """The ids that have no row, or whose file is damaged."""
        ids = list(ids)
        return [ids[at] for at in np.flatnonzero(self.lacks(as_keys(ids))).tolist()]

    def lacks(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each id has no row, or its file is damaged."""
        shards = self._shards
        number, _ = shards.rows.find(keys)
        for used in np.unique(number[number >= 0]).tolist():
            shards.open(shards.rows.names[used])
        if n := shards.remove_damaged():
            files = "1 file is" if n == 1 else f"{n} files are"
            print(
                f"{files} damaged, or without a checksum, in {self.folder}; removed, and what is needed of it is computed again",
                file=sys.stderr,
            )
            number, _ = shards.rows.find(keys)
        shards.write_index()
        return number < 0

    def absent(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each id has no row, as far as is known without reading a file."""
        return self._shards.rows.find(keys)[0] < 0

    def add(self, ids: Sequence[UUID], tensors: dict[str, Tensor]) -> str:
        """Write rows as one file; its name."""
        path = self.folder / f"{content_id(''.join(identity.hex for identity in ids).encode()).hex}.safetensors"
        write_tensors(path, tensors, {"ids": json.dumps([str(identity) for identity in ids])})
        self._shards.add(path.name, as_keys(ids))
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
        self._shards.add_written(name)
        if name in self._shards.damaged:
            raise IntegrityError(f"{path}, which another process has just written, is damaged")

    def _places(self, ids: Sequence[UUID]) -> Iterator[tuple[dict[str, Tensor], int]]:
        """The tensors of the file of each id, and its row in them; KeyError if it has none."""
        rows = self._shards.rows
        for identity, number, row in zip(ids, *(found.tolist() for found in rows.find(as_keys(ids))), strict=True):
            if number < 0:
                raise KeyError(identity)
            yield self._shards.tensors(rows.names[number]), row

    def rows(self, name: str, ids: Sequence[UUID]) -> Tensor:
        """The tensor `name` of the ids, stacked in their order; none may be missing."""
        return torch.stack([tensors[name][at] for tensors, at in self._places(ids)])

    def ragged(self, name: str, ids: Sequence[UUID]) -> list[Tensor]:
        """The tensor `name` of the ids, whose lengths may differ, without padding."""
        rows = []
        for tensors, at in self._places(ids):
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
        show: bool = True,
        idle: Callable[[], object] | None = None,
    ) -> None:
        """Add the missing rows, a batch at a time; `rows_of` may leave out rows that cannot be computed.

        Several processes compute a batch each and then hear of each other's failures and signals, so that none waits longer
        than for a batch, and what is missing of an interrupted cache is the end of the list, in the same batches.

        Args:
            missing: the same in all processes, as `open_cache` gives it.
            read_ahead: called with the ids of the next batch before the rows of one are computed.
            show: a progress bar.
            idle: called in a process that has no batch in the last round: for a model that runs only in all processes at once.
                An error in one process then ends it at once, since the others wait for it inside the model.

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
        with progress(len(missing), what) if show and ranks.is_main else nullcontext() as bar:
            ids: list[UUID] = []
            parts: list[Mapping[str, Tensor | list[Tensor]]] = []

            def compute(number: int) -> None:
                if not mine[number] and idle is not None:
                    idle()
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
                    if idle is None:
                        ranks.together(lambda number=number: compute(number))
                    else:
                        compute(number)
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
                    self._shards.write_index()
                raise
        written = ranks.gather(names)
        ranks.together(lambda: [self.add_file(name) for of in written for name in of if name not in names])
        if ranks.is_main:
            self._shards.write_index()


def open_cache(folder: Path, keys: Keys, ranks: Ranks = ALONE) -> tuple[TensorCache, Keys]:
    """A cache and those of the ids that have no row in it, as the main process finds it: the others open the folder when it
    has removed what is damaged."""
    opened: list[TensorCache] = []

    def open_and_verify() -> Keys:
        opened.append(TensorCache(folder))
        return keys[opened[0].lacks(keys)]

    missing = ranks.from_main(ranks.together(lambda: open_and_verify() if ranks.is_main else keys[:0]))
    ranks.together(lambda: None if ranks.is_main else open_and_verify())
    return opened[0], missing


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
