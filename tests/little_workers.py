"""What the workers of tests hold and do. Each process keeps count in a folder that all of them see."""

import os
import signal
import time
from pathlib import Path

from prefloop.core.errors import PrefloopError, UsageError
from prefloop.store import ImageError


class Counter:
    """Counts events by name, across processes and their deaths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count("made")

    def count(self, event: str) -> int:
        """How many times it has happened, this time included."""
        with open(self.folder / event, "a") as file:
            file.write("x")
        return len((self.folder / event).read_text())


def double(_: Counter, job: int) -> int:
    return 2 * job


def die(counter: Counter, job: tuple[str, int]) -> str:
    """A job is a name, and how many workers die on it; the first of them that dies does so at once."""
    name, deaths = job
    time.sleep(0.0 if name == "first" else 0.5)
    if counter.count(name) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def fail(_: Counter, job: str) -> None:
    if job == "usage":
        raise UsageError("beta must be positive")
    raise ImageError("hash", "it has changed")


def no_model(_: Path) -> Counter:
    raise PrefloopError("cannot find the model 'nowhere'")
