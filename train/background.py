"""Write a checkpoint while the next steps run: a copy of what they will change, and a thread."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor


def host_copy(state: Any) -> Any:
    """The same dicts, lists and tuples with a copy of each tensor in the host's memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: host_copy(part) for name, part in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(host_copy(part) for part in state)
    return state


def save_copied(kind: Any, config: Mapping[str, Any], state: dict[str, Tensor], folder: Path) -> None:
    """Write a component as its own save_pretrained would.

    Args:
        kind: its class, of diffusers.
        state: all its weights.
    """
    with torch.device("meta"):
        shell = kind.from_config(config)
    shell.load_state_dict(state, assign=True)
    shell.save_pretrained(folder)


class BackgroundWriter:
    """One write at a time, in a thread. An error of it is raised by the next call of the thread that started it."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Start a write, once the one before is finished."""
        self.wait()

        def run() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        self._thread = Thread(target=run, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a write that failed; waits for nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the write; it is on disk after that.

        Raises:
            BaseException: what it raised.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """No write outlives the block. If the block raises, that error is the one that counts."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.wait()
            raise
        self.wait()
