"""Stop on a signal: between two steps, or immediately while nothing is written."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import Interrupted


def interrupted(done: str, number: int) -> Interrupted:
    """The error to raise after a signal. `done` says what is safe."""
    return Interrupted(f"interrupted: {done}; the same command continues from here", number)


class StopSignal:
    """`requested` is True after the first SIGINT or SIGTERM; a second one ends the process immediately."""

    def __init__(self) -> None:
        self.number = 0
        self._at_once = False

    @property
    def requested(self) -> bool:
        return self.number != 0

    def check(self, done: str) -> None:
        """Raise Interrupted if a signal was received. `done` says what is safe."""
        if self.requested:
            raise interrupted(done, self.number)

    def _handle(self, number: int, _frame: object) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        if self._at_once:
            self.check("nothing is lost")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal ends immediately: for slow work that writes nothing, such as reading weights."""
        done = "nothing is lost"
        self.check(done)
        self._at_once = True
        try:
            yield
        except Exception:
            self._at_once = False
            self.check(done)  # libraries turn the interruption into errors of their own
            raise
        finally:
            self._at_once = False
        self.check(done)  # or swallow it

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Take the signals during the block. One inside the block of another takes what that one has received, and hands back
        what it receives itself, so that no signal is lost between the stages of a longer run."""
        try:
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, which handles signals
            yield self
            return
        outer = getattr(before[signal.SIGTERM], "__self__", None)
        outer = outer if isinstance(outer, StopSignal) else self
        try:
            self.number = self.number or outer.number
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            outer.number = outer.number or self.number
