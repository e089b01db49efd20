"""Labels by people, each on disk before it is acknowledged; and now and then all of them into the tables."""

import threading
from collections import Counter
from uuid import UUID

from ...core.ids import canonical
from ...store import PairStore, UsageError
from ...store.maintenance.compact import compact_small

MOST_MS = 86_400_000


class Answers:
    """Writes labels of one run of the page."""

    def __init__(self, store: PairStore, run_id: UUID) -> None:
        self.store, self.run_id = store, run_id
        self.counts: Counter[str] = Counter()
        """Answers that stand, by labeler."""
        self._lock = threading.Lock()
        self._new = 0

    def describe(self, labeler: str) -> None:
        """Enter a person.

        Raises:
            UsageError: where the name is that of a labeler who is none.
        """
        known = self.store.rows("select kind from labelers where labeler = ?", [labeler])
        if known and known[0][0] != "human":
            raise UsageError(f"the labeler {labeler!r} is there, of kind {known[0][0]}; take another name")
        if not known:
            self.store.append("labelers", [{"labeler": labeler, "kind": "human", "config": canonical({})}])

    def write(self, labeler: str, pair: UUID, rep: int, choice: str, left: str, ms: int | None) -> None:
        """One label; on disk when this returns.

        Args:
            left: the picture that was shown on the left, a or b.
            ms: from showing to choosing, in milliseconds.
        """
        shown = None if ms is None else max(0, min(ms, MOST_MS))
        row = {
            "pair_id": pair,
            "labeler": labeler,
            "revision": rep,
            "choice": choice,
            "shown_left": left,
            "response_ms": shown,
        }
        self._append(row)
        self.counts[labeler] += 1

    def take_back(self, labeler: str, pair: UUID, rep: int, before: str | None) -> None:
        """What stood before the last answer stands again: a later repetition that nobody was shown.

        Args:
            before: the choice; None where there was none, which is told as a skip.
        """
        self._append({"pair_id": pair, "labeler": labeler, "revision": rep, "choice": before or "skip"})
        self.counts[labeler] -= 1

    def _append(self, row: dict) -> None:
        self.store.append("labels", [row | {"run_id": self.run_id}])
        with self._lock:
            self._new += 1

    def settle(self) -> None:
        """Take what is new into the tables; many small parts become one. What fails is done the next time."""
        with self._lock:
            new = self._new
        if new:
            self.store.ingest()
            compact_small(self.store, "labels")
            with self._lock:
                self._new -= new
