"""Finish each result in another thread, while the next one is made here."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_background(results: Iterable[T], finish: Callable[[T], R]) -> Iterator[R]:
    """What `finish` makes of each result, in their order. It runs in one thread of its own, so that a result is finished while this
    thread makes the next one; that gains if `finish` waits for a disk, or runs long without Python's lock.

    At most two results are held: one that is being finished, and the next. However the loop ends, by an error of `results` too,
    those that were made are finished first. An error of `finish` is raised here, after at most one more result.
    """
    with ThreadPoolExecutor(1, "finish") as thread:
        running: Future[R] | None = None
        for result in results:
            before, running = running, thread.submit(finish, result)
            if before is not None:
                yield before.result()
        if running is not None:
            yield running.result()
