"""The processes that train together: how they share work, agree to stop, and fail together. Imports nothing slow."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..core.errors import PrefloopError
from ..core.signals import StopSignal, interrupted

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The number of this process and of all. Every process must make the same calls in the same order."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of(cls, accelerator: "Accelerator") -> "Ranks":
        return cls(accelerator.process_index, accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Every world-th part, so that the processes get through a list from its beginning to its end together."""
        return parts[self.rank :: self.world]

    def gather(self, value: T) -> list[T]:
        """The value that each process has, by rank."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        with _all_answer():
            return gather_object([value])

    def from_main(self, value: T) -> T:
        """The value that the main process has."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with _all_answer():
            return broadcast_object_list([value])[0]

    def together(self, action: Callable[[], T]) -> T:
        """Run an action in every process; if it fails in one, all raise its error, so that none waits for another."""
        if self.world == 1:
            return action()
        result: list[T] = []
        own: Exception | None = None
        try:
            result.append(action())
        except Exception as error:
            own = error
        described = own if own is None or isinstance(own, PrefloopError) else f"{type(own).__name__}: {own}"
        failures = [(rank, failure) for rank, failure in enumerate(self.gather(described)) if failure is not None]
        if not failures:
            return result[0]
        if own is not None and not isinstance(own, PrefloopError):
            raise own  # a traceback is worth printing wherever it comes from
        rank, failure = failures[0]
        if isinstance(failure, str):
            failure = PrefloopError(f"process {rank} of {self.world} failed: {failure}")
        raise self.said_once(failure)

    def on_main(self, action: Callable[[], object]) -> None:
        """Run an action in the main process alone; if it fails, all raise its error."""
        self.together(lambda: action() if self.is_main else None)

    def signal(self, stop: StopSignal) -> int:
        """The number of the signal that any process has received; 0 if none has."""
        return max(self.gather(stop.number))

    def check(self, stop: StopSignal, done: str) -> None:
        """`StopSignal.check` in all processes, if one of them has received a signal."""
        if number := self.signal(stop):
            raise self.said_once(interrupted(done, number))

    def said_once(self, error: PrefloopError) -> PrefloopError:
        """The error, which all processes raise and the main one prints."""
        error.said_elsewhere = not self.is_main
        return error


ALONE = Ranks()


@contextmanager
def _all_answer() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed's own errors are among them
        raise lost_process(error) from error


def lost_process(error: Exception) -> PrefloopError:
    """The error to raise if a process of the training has died or does not answer."""
    reason = str(error).strip().split("\n")[0]
    return PrefloopError(
        f"another process of this training has ended or does not answer ({reason}); what it printed says why, and the "
        "same command continues from the last checkpoint"
    )


def is_lost_process(error: Exception) -> bool:
    """Whether an error of torch says that another process has died or does not answer."""
    import torch

    signs = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Socket closed")
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error) for sign in signs)
