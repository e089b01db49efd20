"""Decides which pair each person sees next. Kept in memory, so that nobody waits while another process writes to the store."""

import random
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from uuid import UUID

from .config import LabelConfig
from .notes import Label, Notes

LEASE = 900.0
"""Seconds without a request after which a person's pairs go to others."""
REPEAT_GAP = 10
"""Minimum number of answers between a pair and its repetition."""


@dataclass(frozen=True)
class Assignment:
    """A pair assigned to one person."""

    pair: UUID
    left: str
    """Which image is on the left: a or b."""
    is_repeat: bool = False
    """This person has already decided the pair."""
    ticket: str = field(default_factory=lambda: secrets.token_hex(8))
    """Unique, so that a choice sent twice counts once."""
    draft: Notes = field(default_factory=Notes)
    """What this person noted before undoing the answer."""


@dataclass(frozen=True)
class Answer:
    """An answer, with what it takes to undo it."""

    assignment: Assignment
    draft: Notes
    """What was noted with it."""
    previous: Label | None
    """The label it replaced."""


@dataclass(eq=False)
class Session:
    """One browser of one person."""

    labeler: str
    last_seen: float = field(default_factory=time.monotonic)
    assignments: list[Assignment] = field(default_factory=list)
    """The pair that is shown, then the next one."""
    answers: list[Answer] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while one request of this browser is served."""


class LabelQueue:
    """The pairs in order, the current choices, and who is looking at which pair."""

    def __init__(self, config: LabelConfig, pairs: Sequence[UUID]) -> None:
        self.config = config
        self.pairs = dict.fromkeys(pairs)
        self._random = random.Random(config.seed)
        self._lock = threading.Lock()
        self._sessions: list[Session] = []
        self._labels: dict[str, dict[UUID, Label]] = defaultdict(dict)
        self._revisions: dict[tuple[str, UUID], int] = {}
        self._n_answers: Counter[tuple[str, UUID]] = Counter()
        self._deciders: dict[UUID, set[str]] = defaultdict(set)
        self._open = dict.fromkeys(pairs)

    # Current labels

    def load(self, current: Iterable[tuple[str, UUID, int, Label | None]]) -> None:
        """Add the labels that the store holds of labelers who are not loaded yet."""
        with self._lock:
            loaded = set(self._labels)
            for labeler, pair, revision, label in current:
                if labeler in loaded:
                    continue
                self._revisions[labeler, pair] = revision
                if label is not None:
                    self._n_answers[labeler, pair] = revision + 1
                self._set_label(labeler, pair, label)

    def extend(self, pairs: Iterable[UUID]) -> int:
        """Append the pairs that are new; returns how many."""
        with self._lock:
            new = [pair for pair in pairs if pair not in self.pairs]
            for pair in new:
                self.pairs[pair] = None
                if len(self._deciders[pair]) < self.config.overlap:
                    self._open[pair] = None
        return len(new)

    def drop(self, pair: UUID) -> None:
        """Remove a pair from the queue and from every session."""
        with self._lock:
            self.pairs.pop(pair, None)
            self._open.pop(pair, None)
            for session in self._sessions:
                session.assignments = [assignment for assignment in session.assignments if assignment.pair != pair]

    def _set_label(self, labeler: str, pair: UUID, label: Label | None) -> None:
        if label is None:
            self._labels[labeler].pop(pair, None)
            self._deciders[pair].discard(labeler)
        else:
            self._labels[labeler][pair] = label
            self._deciders[pair].add(labeler)
        if pair not in self.pairs:
            return
        if len(self._deciders[pair]) >= self.config.overlap:
            self._open.pop(pair, None)
        else:
            self._open[pair] = None

    # Sessions

    def open_session(self, labeler: str) -> Session:
        session = Session(labeler)
        with self._lock:
            self._labels[labeler]  # creates the entry: from now on memory is newer than the tables
            self._sessions.append(session)
        return session

    def knows(self, labeler: str) -> bool:
        with self._lock:
            return labeler in self._labels

    def assignments(self, session: Session) -> list[Assignment]:
        """The current pair and the next one, fewer at the end. They stay the same until one is answered."""
        with self._lock:
            session.last_seen = time.monotonic()
            session.assignments = [one for one in session.assignments if self._is_valid(session, one)]
            while len(session.assignments) < 2 and (assignment := self._assign_next(session)):
                session.assignments.append(assignment)
            return list(session.assignments)

    def _assign_next(self, session: Session) -> Assignment | None:
        if self._random.random() < self.config.repeats and (pair := self._pick_repeat(session)):
            return self._assign(pair, is_repeat=True)
        pair = next((pair for pair in self._open if self._is_available(session, pair)), None)
        return None if pair is None else self._assign(pair)

    def _assign(self, pair: UUID, *, is_repeat: bool = False) -> Assignment:
        return Assignment(pair, self._random.choice("ab"), is_repeat)

    def _is_valid(self, session: Session, assignment: Assignment) -> bool:
        """Whether nobody else took or decided the pair while this browser was silent."""
        return assignment.is_repeat or (
            assignment.pair in self._open and self._is_available(session, assignment.pair, ignore=assignment)
        )

    def _is_available(self, session: Session, pair: UUID, ignore: Assignment | None = None) -> bool:
        if pair in self._labels[session.labeler]:
            return False
        taken = len(self._deciders[pair])
        for other in self._sessions:
            for assignment in other.assignments:
                if assignment.pair != pair or assignment is ignore or assignment.is_repeat or not _is_active(other):
                    continue
                if other.labeler == session.labeler:
                    return False
                taken += 1
        return taken < self.config.overlap

    def _pick_repeat(self, session: Session) -> UUID | None:
        """A pair that this person decided once, not recently, and that is on none of their screens."""
        labeler = session.labeler
        recent = {answer.assignment.pair for answer in session.answers[-REPEAT_GAP:]}
        recent |= {one.pair for other in self._sessions if other.labeler == labeler for one in other.assignments}
        once = [
            pair
            for pair, label in self._labels[labeler].items()
            if label.choice != "skip"
            and self._n_answers[labeler, pair] == 1
            and pair not in recent
            and pair in self.pairs
        ]
        return self._random.choice(once) if once else None

    # Answers

    def next_revision(self, labeler: str, pair: UUID) -> int:
        """A revision number that no other label of this person and pair has."""
        with self._lock:
            revision = self._revisions.get((labeler, pair), -1) + 1
            self._revisions[labeler, pair] = revision
        return revision

    def current_label(self, labeler: str, pair: UUID) -> Label | None:
        with self._lock:
            return self._labels[labeler].get(pair)

    def record_answer(self, session: Session, answer: Answer, label: Label) -> None:
        """Call when the label is on disk."""
        assignment = answer.assignment
        with self._lock:
            session.assignments = [other for other in session.assignments if other is not assignment]
            session.answers.append(answer)
            self._n_answers[session.labeler, assignment.pair] += 1
            self._set_label(session.labeler, assignment.pair, label)

    def record_undo(self, session: Session) -> None:
        """Call when the undo of the last answer is on disk. Its pair is shown again, with the sides at random again and what was
        noted."""
        with self._lock:
            answer = session.answers.pop()
            pair = answer.assignment.pair
            self._n_answers[session.labeler, pair] -= 1
            self._set_label(session.labeler, pair, answer.previous)
            again = self._assign(pair, is_repeat=answer.assignment.is_repeat)
            session.assignments.insert(0, replace(again, draft=answer.draft))

    # Counts

    def progress(self, labeler: str) -> dict[str, int]:
        """Pairs in the queue (total), pairs that need no further answer (done), and pairs this person decided (own)."""
        with self._lock:
            own = sum(pair in self.pairs for pair in self._labels[labeler]) if labeler in self._labels else 0
            return {"done": len(self.pairs) - len(self._open), "total": len(self.pairs), "own": own}

    def upcoming(self, n: int) -> list[UUID]:
        """The pairs that are assigned now, then at least the first `n` open ones."""
        with self._lock:
            assigned = [assignment.pair for session in self._sessions for assignment in session.assignments]
            return assigned + list(islice(self._open, n + len(assigned)))

    def n_open(self) -> int:
        with self._lock:
            return len(self._open)

    def n_assigned_to_others(self, session: Session) -> int:
        """Pairs that other people have now and may give back."""
        with self._lock:
            return sum(len(other.assignments) for other in self._sessions if other is not session and _is_active(other))


def _is_active(session: Session) -> bool:
    return time.monotonic() - session.last_seen < LEASE
