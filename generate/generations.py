"""The images of a plan, for millions of them: 24 bytes each, and an object only on access."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..core.id_columns import IdColumn, Keys, id_array, keys_of
from ..store import PairStore
from ..store.connection import table_with_ids

IDS_AT_ONCE = 65_536  # that are looked up; a smaller number takes less memory, and scans the table more often


@dataclass(frozen=True)
class Generation:
    """One image of a plan."""

    prompt: str
    index: int
    generation_id: UUID


class Generations(Sequence[Generation]):
    """Images of N prompts, K of each."""

    def __init__(
        self, prompts: Sequence[str], images_per_prompt: int, keys: Keys, numbers: NDArray[np.int64] | None = None
    ) -> None:
        """
        Args:
            keys: their generation ids.
            numbers: which of the N K images they are, counted prompt by prompt; all of them if not given.
        """
        self._prompts, self._images_per_prompt = prompts, images_per_prompt
        self.keys = keys
        self._numbers = np.arange(len(keys)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> Generation: ...
    @overload
    def __getitem__(self, at: slice) -> "Generations": ...
    def __getitem__(self, at: "int | slice") -> "Generation | Generations":
        if isinstance(at, slice):
            return self._picked(at)
        identity = IdColumn(self.keys)[at]
        return self._generation(int(self._numbers[at]), identity)

    def __iter__(self) -> Iterator[Generation]:
        return map(self._generation, map(int, self._numbers), IdColumn(self.keys))

    def where(self, is_wanted: NDArray[np.bool_]) -> "Generations":
        """Those at which it is true, (len,)."""
        return self._picked(is_wanted)

    def _picked(self, at: "slice | NDArray[np.bool_]") -> "Generations":
        return Generations(self._prompts, self._images_per_prompt, self.keys[at], self._numbers[at])

    def _generation(self, number: int, identity: UUID) -> Generation:
        prompt, index = divmod(number, self._images_per_prompt)
        return Generation(self._prompts[prompt], index, identity)


def in_store(generations: Keys, store: PairStore) -> NDArray[np.bool_]:
    """Which of the generation ids the store has, (N,)."""
    found = np.zeros(len(generations), bool)
    for rows in _stored(generations, store, "number"):
        found[rows["number"].to_numpy()] = True
    return found


def find_images(generations: Keys, store: PairStore) -> tuple[NDArray[np.bool_], Keys]:
    """Which of the generation ids the store has, (N,), and their image ids, (N,), which mean nothing for the others."""
    found, images = np.zeros(len(generations), bool), np.zeros(len(generations), "S16")
    for rows in _stored(generations, store, "number, image_id"):
        numbers = rows["number"].to_numpy()
        found[numbers], images[numbers] = True, keys_of(rows["image_id"])
    return found, images


def _stored(generations: Keys, store: PairStore, columns: str) -> Iterator[pa.Table]:
    """Columns of the generations that the store has; number is the place of the id."""
    query = f"select {columns} from planned join generations using (generation_id)"
    with store.session() as connection:
        for start in range(0, len(generations), IDS_AT_ONCE):
            ids = id_array(generations[start : start + IDS_AT_ONCE])
            planned = {
                "generation_id": pa.ExtensionArray.from_storage(pa.uuid(), ids),
                "number": np.arange(start, start + len(ids)),
            }
            connection.register("planned", pa.table(planned))
            yield table_with_ids(connection, query)
            connection.unregister("planned")
