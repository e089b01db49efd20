"""What a worker process does, whoever starts it: make an object once, call functions of it, hand errors back."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .errors import PrefloopError


class Worker:
    """Holds an object, which its first call makes. Two calls can run at the same time."""

    def __init__(self, make: Callable[[], Any], folder: str) -> None:
        self._make, self._made, self._lock = make, list[Any](), threading.Lock()
        with suppress(OSError):  # names of models and scorers may be relative
            os.chdir(folder)

    def load(self) -> "Raised | None":
        return self._caught(lambda _: None)

    def run(self, function: Callable[[Any, Any], Any], job: Any) -> Any:
        return self._caught(lambda made: function(made, job))

    def _caught(self, call: Callable[[Any], Any]) -> Any:
        try:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
            return call(self._made[0])
        except PrefloopError as error:
            return Raised(type(error), str(error), vars(error))


@dataclass(frozen=True)
class Raised:
    """An error of ours as data: Ray would hand it on with a traceback in its message, and not all can be pickled."""

    kind: type[PrefloopError]
    message: str
    attributes: dict[str, Any]


def value_of(result: Any) -> Any:
    """What a worker's call gave. Raises the error that it gave."""
    if isinstance(result, Raised):
        error = result.kind.__new__(result.kind, result.message)
        error.__dict__.update(result.attributes)
        raise error
    return result
