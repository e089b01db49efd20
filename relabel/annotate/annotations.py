"""Labels by people: each is on disk before it is acknowledged, and from time to time all of them go into the tables."""

import threading
from collections import Counter
from uuid import UUID

from ...core.ids import canonical
from ...store import PairStore, UsageError
from .notes import NO_NOTES, Label, Notes

MAX_MS = 86_400_000


class Annotations:
    """Writes the labels of one run of the page."""

    def __init__(self, store: PairStore, run_id: UUID) -> None:
        self.store, self.run_id = store, run_id
        self.counts: Counter[str] = Counter()
        """Answers minus undone ones, by labeler."""
        self._lock = threading.Lock()
        self._n_unflushed = 0

    def add_labeler(self, labeler: str) -> None:
        """Store a person as a labeler, if they are not stored yet.

        Raises:
            UsageError: if the name belongs to a labeler that is not a person.
        """
        known = self.store.rows("select kind from labelers where labeler = ?", [labeler])
        if known and known[0][0] != "human":
            raise UsageError(f"the labeler {labeler!r} exists already, of kind {known[0][0]}; choose another name")
        if not known:
            self.store.append("labelers", [{"labeler": labeler, "kind": "human", "config": canonical({})}])

    def write(
        self, labeler: str, pair: UUID, rep: int, choice: str, left: str, ms: int | None, notes: Notes = NO_NOTES
    ) -> None:
        """Write one label; it is on disk when this returns.

        Args:
            left: the image that was shown on the left, a or b.
            ms: from showing to choosing, in milliseconds.
        """
        shown = None if ms is None else max(0, min(ms, MAX_MS))
        row = {
            "pair_id": pair,
            "labeler": labeler,
            "revision": rep,
            "choice": choice,
            "shown_left": left,
            "response_ms": shown,
            "notes": notes.to_json(),
        }
        self._append(row)
        self.counts[labeler] += 1

    def undo(self, labeler: str, pair: UUID, rep: int, before: Label | None) -> None:
        """Restore the previous label as a new revision, without a side shown.

        Args:
            before: the label to restore; None if there was none, which is stored as a skip.
        """
        restored = {"choice": before.choice, "notes": before.notes.to_json()} if before else {"choice": "skip"}
        self._append({"pair_id": pair, "labeler": labeler, "revision": rep} | restored)
        self.counts[labeler] -= 1

    def _append(self, row: dict) -> None:
        self.store.append("labels", [row | {"run_id": self.run_id}])
        with self._lock:
            self._n_unflushed += 1

    def flush(self) -> None:
        """Ingest new labels. What fails is retried by the next call."""
        with self._lock:
            n_new = self._n_unflushed
        if n_new:
            self.store.ingest()
            with self._lock:
                self._n_unflushed -= n_new
