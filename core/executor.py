"""Do jobs with a model, in this process or in several workers that each hold it. The caller plans, stores and orders."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Generic, Protocol, TypeVar

from .errors import UsageError
from .signals import StopSignal
from .validate import positive

MAX_WORKERS = 10_000
W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)
J = TypeVar("J")
R = TypeVar("R")


class Pool(Protocol[W_co]):
    """One or several workers, each with one object, such as a loaded model."""

    def done(self, function: Callable[[W_co, J], R], jobs: Iterable[J], stop: StopSignal) -> Iterator[tuple[J, R]]:
        """Each job with what the function makes of it, in any order. Jobs are drawn from the iterable as they are needed.

        Args:
            function: of the worker's object and a job; whatever it raises is raised here. With several workers it, the jobs
                and their results are pickled.
            stop: ends the run while it waits.

        Raises:
            PrefloopError: if workers died on the same job again and again; it names the job by its str().
        """
        ...


class InProcess(Generic[W]):
    """This process as the only worker; nothing is pickled, and the object is made for the first job."""

    def __init__(self, make: Callable[[], W]) -> None:
        self._make, self._made = make, list[W]()

    def done(self, function: Callable[[W, J], R], jobs: Iterable[J], stop: StopSignal) -> Iterator[tuple[J, R]]:
        for job in jobs:
            if not self._made:
                with stop.at_once():  # nothing is written while weights are read
                    self._made.append(self._make())
            yield job, function(self._made[0], job)


def check_workers(n: int) -> None:
    """
    Raises:
        UsageError: if there cannot be that many workers.
    """
    positive("workers", n, MAX_WORKERS)
    if n > 1 and find_spec("ray") is None:
        raise UsageError("several workers need Ray; run `pip install 'prefloop[ray]'`, or leave --workers out")


@contextmanager
def pool_of(n: int, make: Callable[[], W], device: str | None = None) -> Iterator[Pool[W]]:
    """The workers, for the duration of the block.

    Args:
        make: makes a worker's object; pickled if n is above 1.
        device: what the objects run on. None is a GPU for each worker if there are any.
    """
    check_workers(n)
    if n == 1:
        yield InProcess(make)
        return
    from .ray_workers import RayPool

    with RayPool(n, make, device) as pool:
        yield pool
