"""Who gets which pair next. Kept in memory: people are answered while another process writes to the store."""

import random
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from uuid import UUID

from .config import LabelConfig

LEASE = 900.0
"""Seconds after a person's last sign of life until what they were shown goes to others."""
GAP = 10
"""Answers that lie at least between a pair and its repetition."""


@dataclass(frozen=True)
class Showing:
    """A pair on its way to one person."""

    pair: UUID
    left: str
    """Which picture is on the left: a or b."""
    again: bool = False
    """Decided by this person before."""
    ticket: str = field(default_factory=lambda: secrets.token_hex(8))
    """Told from every other showing, so that a choice sent twice counts once."""


@dataclass(frozen=True)
class Answer:
    """What was last done, so that it can be undone."""

    showing: Showing
    choice: str
    before: str | None
    """The choice that stood until then."""


@dataclass(eq=False)
class Sitting:
    """One browser of one person."""

    labeler: str
    seen: float = field(default_factory=time.monotonic)
    line: list[Showing] = field(default_factory=list)
    """What is shown, then what comes next."""
    answers: list[Answer] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while one request of this browser is served."""


class Desk:
    """Pairs in the order of the queue, what stands of each, and who has it before them."""

    def __init__(self, config: LabelConfig, pairs: Sequence[UUID]) -> None:
        self.config = config
        self.pairs = dict.fromkeys(pairs)
        self._random = random.Random(config.seed)
        self._lock = threading.Lock()
        self._sittings: list[Sitting] = []
        self._choices: dict[str, dict[UUID, str]] = defaultdict(dict)
        self._reps: dict[tuple[str, UUID], int] = {}
        self._times: Counter[tuple[str, UUID]] = Counter()
        self._deciders: dict[UUID, set[str]] = defaultdict(set)
        self._open = dict.fromkeys(pairs)
        self._counted: set[str] = set()
        """Labelers whose labels bring a pair nearer to its overlap; those of an import do not."""

    # What stands

    def load(self, standing: Iterable[tuple[str, UUID, int, str | None]], *, counted: bool = True) -> None:
        """Enter labels that the store holds, of labelers that are not known yet."""
        with self._lock:
            known = set(self._choices)
            for labeler, pair, rep, choice in standing:
                if labeler in known:
                    continue
                if counted:
                    self._counted.add(labeler)
                self._reps[labeler, pair] = rep
                if choice is not None:
                    self._times[labeler, pair] = rep + 1
                self._stand(labeler, pair, choice)

    def extend(self, pairs: Iterable[UUID]) -> int:
        """Put pairs that are new behind the others; how many there were."""
        with self._lock:
            new = [pair for pair in pairs if pair not in self.pairs]
            for pair in new:
                self.pairs[pair] = None
                if len(self._deciders[pair]) < self.config.overlap:
                    self._open[pair] = None
        return len(new)

    def drop(self, pair: UUID) -> None:
        """Show a pair to nobody any more."""
        with self._lock:
            self.pairs.pop(pair, None)
            self._open.pop(pair, None)
            for sitting in self._sittings:
                sitting.line = [showing for showing in sitting.line if showing.pair != pair]

    def _stand(self, labeler: str, pair: UUID, choice: str | None) -> None:
        if choice is None:
            self._choices[labeler].pop(pair, None)
            self._deciders[pair].discard(labeler)
        else:
            self._choices[labeler][pair] = choice
            if labeler in self._counted:
                self._deciders[pair].add(labeler)
        if pair not in self.pairs:
            return
        if len(self._deciders[pair]) >= self.config.overlap:
            self._open.pop(pair, None)
        else:
            self._open[pair] = None

    # People

    def sit(self, labeler: str) -> Sitting:
        sitting = Sitting(labeler)
        with self._lock:
            self._counted.add(labeler)
            self._choices[labeler]  # from now on memory knows better than the tables
            self._sittings.append(sitting)
        return sitting

    def knows(self, labeler: str) -> bool:
        with self._lock:
            return labeler in self._choices

    def line(self, sitting: Sitting) -> list[Showing]:
        """What is shown and what comes next: two pairs, fewer at the end. The same until one is answered."""
        with self._lock:
            sitting.seen = time.monotonic()
            sitting.line = [showing for showing in sitting.line if self._still(sitting, showing)]
            while len(sitting.line) < 2 and (showing := self._next(sitting)):
                sitting.line.append(showing)
            return list(sitting.line)

    def _next(self, sitting: Sitting) -> Showing | None:
        if self._random.random() < self.config.repeats and (pair := self._repeat(sitting)):
            return self._show(pair, again=True)
        pair = next((pair for pair in self._open if self._free(sitting, pair)), None)
        return None if pair is None else self._show(pair)

    def _show(self, pair: UUID, *, again: bool = False) -> Showing:
        return Showing(pair, self._random.choice("ab"), again)

    def _still(self, sitting: Sitting, showing: Showing) -> bool:
        """Whether nobody else took or decided it while this browser was silent."""
        return showing.again or (showing.pair in self._open and self._free(sitting, showing.pair, mine=showing))

    def _free(self, sitting: Sitting, pair: UUID, mine: Showing | None = None) -> bool:
        if pair in self._choices[sitting.labeler]:
            return False
        taken = len(self._deciders[pair])
        for other in self._sittings:
            for showing in other.line:
                if showing.pair != pair or showing is mine or showing.again or not self._awake(other):
                    continue
                if other.labeler == sitting.labeler:
                    return False
                taken += 1
        return taken < self.config.overlap

    def _repeat(self, sitting: Sitting) -> UUID | None:
        """A pair this person decided once, not of late, that no browser of theirs shows."""
        late = {answer.showing.pair for answer in sitting.answers[-GAP:]}
        late |= {s.pair for other in self._sittings if other.labeler == sitting.labeler for s in other.line}
        labeler = sitting.labeler
        once = [
            pair
            for pair, choice in self._choices[labeler].items()
            if choice != "skip" and self._times[labeler, pair] == 1 and pair not in late and pair in self.pairs
        ]
        return self._random.choice(once) if once else None

    @staticmethod
    def _awake(sitting: Sitting) -> bool:
        return time.monotonic() - sitting.seen < LEASE

    # Answers

    def next_rep(self, labeler: str, pair: UUID) -> int:
        """A repetition that no other label of this person and pair has."""
        with self._lock:
            rep = self._reps.get((labeler, pair), -1) + 1
            self._reps[labeler, pair] = rep
        return rep

    def standing(self, labeler: str, pair: UUID) -> str | None:
        with self._lock:
            return self._choices[labeler].get(pair)

    def answered(self, sitting: Sitting, showing: Showing, choice: str, before: str | None) -> None:
        """The label is on disk."""
        with self._lock:
            sitting.line = [other for other in sitting.line if other is not showing]
            sitting.answers.append(Answer(showing, choice, before))
            self._times[sitting.labeler, showing.pair] += 1
            self._stand(sitting.labeler, showing.pair, choice)

    def undone(self, sitting: Sitting) -> None:
        """The last answer is taken back on disk; its pair is shown again, the other way round or not."""
        with self._lock:
            answer = sitting.answers.pop()
            pair = answer.showing.pair
            self._times[sitting.labeler, pair] -= 1
            self._stand(sitting.labeler, pair, answer.before)
            sitting.line.insert(0, self._show(pair, again=answer.showing.again))

    # Counts

    def progress(self, labeler: str) -> dict[str, int]:
        """done and total pairs of the queue, and how many of them this person has decided."""
        with self._lock:
            own = sum(pair in self.pairs for pair in self._choices[labeler]) if labeler in self._choices else 0
            return {"done": len(self.pairs) - len(self._open), "total": len(self.pairs), "own": own}

    def ahead(self, n: int) -> list[UUID]:
        """The first open pairs, and all that are before somebody."""
        with self._lock:
            shown = [showing.pair for sitting in self._sittings for showing in sitting.line]
            return shown + list(islice(self._open, n + len(shown)))

    def n_open(self) -> int:
        with self._lock:
            return len(self._open)

    def elsewhere(self, sitting: Sitting) -> int:
        """Pairs that are before other people now and may come back."""
        with self._lock:
            return sum(len(one.line) for one in self._sittings if one is not sitting and self._awake(one))
