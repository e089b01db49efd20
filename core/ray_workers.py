"""Workers as Ray actors, on the GPUs of this machine or of a cluster. The only file that imports Ray."""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic

if "RAY_ADDRESS" not in os.environ:
    # on systems that Ray has no clusters for it listens on 127.0.0.1 alone; read when Ray is imported
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Ray would print deaths of workers on stdout, which is for results
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")

import ray
from ray.exceptions import RayError, RayTaskError

from .errors import PrefloopError, UsageError
from .executor import J, R, W
from .signals import StopSignal
from .worker import Worker, value_of

AHEAD = 2
"""Jobs of a worker: one for its model, and one that it unpacks or encodes meanwhile."""
TRIES = 3
POLL = 0.2  # seconds between two looks at the signals
TELL_AFTER = 30.0  # seconds
_KEPT = "what is finished is kept"


class RayPool(Generic[W]):
    """Actors that each hold what `make` makes. They are started with the first job, and killed when the block ends.

    A worker that dies is replaced, and its jobs are given out again. If it had one job, that counts as a try of it; if it had
    several, they are given out one by one from then on, so that no job is blamed for another.
    """

    def __init__(self, n: int, make: Callable[[], W], device: str | None) -> None:
        self.n, self._make, self._device = n, make, device
        self._loading: dict[ray.ObjectRef, Any] = {}
        """The actors that have not made their object yet, by the call that makes it."""
        self._ready: list[Any] = []
        self._failed_loads = 0

    def __enter__(self) -> "RayPool[W]":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in (*self._ready, *self._loading.values()):
            with suppress(Exception):  # the cluster may be gone
                ray.kill(actor)

    def done(self, function: Callable[[W, J], R], jobs: Iterable[J], stop: StopSignal) -> Iterator[tuple[J, R]]:
        """See `executor.Pool`."""
        self._start(stop)
        todo, running = _Todo(iter(jobs)), dict[ray.ObjectRef, _Task]()
        began, told = time.monotonic(), False
        while True:
            stop.check(_KEPT)
            self._take_loaded()
            self._hand_out(function, todo, running)
            if not running:
                if todo.is_empty:
                    return
                if not told and time.monotonic() - began > TELL_AFTER:
                    what = "a free GPU" if self._options.get("num_gpus") else "free processors"
                    print(f"no worker is ready yet: each needs {what}, then loads its model", file=sys.stderr)
                    told = True
            finished, _ = ray.wait([*(running or self._loading)], timeout=POLL)
            for task in (running.pop(ref) for ref in finished if ref in running):
                try:
                    result = ray.get(task.ref)
                except RayTaskError as error:
                    raise error.cause or error from None
                except RayError as error:
                    yield from self._after_death(task, running, todo, error)
                else:
                    yield task.work.job, value_of(result)

    def _start(self, stop: StopSignal) -> None:
        if not (self._ready or self._loading):
            self._options = _connect(self.n, self._device)
            stop.check(_KEPT)
            for _ in range(self.n):
                self._add_actor()

    def _add_actor(self) -> None:
        kind: Any = ray.remote(Worker)
        actor = kind.options(**self._options).remote(self._make, os.getcwd())
        self._loading[actor.load.remote()] = actor

    def _take_loaded(self) -> None:
        if not self._loading:
            return
        for ref in ray.wait([*self._loading], num_returns=len(self._loading), timeout=0)[0]:
            actor = self._loading.pop(ref)
            try:
                value_of(ray.get(ref))
            except RayTaskError as error:
                raise error.cause or error from None
            except RayError as error:
                self._failed_loads += 1
                if self._failed_loads == TRIES:
                    raise PrefloopError(
                        f"workers died {TRIES} times before their model was loaded: {_reason(error)}"
                    ) from error
                self._add_actor()
            else:
                self._failed_loads = 0
                self._ready.append(actor)

    def _hand_out(self, function: Callable, todo: "_Todo", running: "dict[ray.ObjectRef, _Task]") -> None:
        while True:
            tasks = {id(actor): [task for task in running.values() if task.actor is actor] for actor in self._ready}
            most = 1 if todo.again else AHEAD
            free = [
                actor
                for actor in self._ready
                if len(tasks[id(actor)]) < most and not any(task.work.is_suspect for task in tasks[id(actor)])
            ]
            if not free or (work := todo.next()) is None:
                return
            actor = min(free, key=lambda actor: len(tasks[id(actor)]))
            ref = actor.run.remote(function, work.job)
            running[ref] = _Task(ref, actor, work)

    def _after_death(
        self, task: "_Task", running: "dict[ray.ObjectRef, _Task]", todo: "_Todo", error: RayError
    ) -> Iterator[tuple[Any, Any]]:
        """Replace a worker. Yields what it had finished; the rest of its jobs are to do again."""
        actor, lost, finished = task.actor, [task.work], []
        with suppress(Exception):
            ray.kill(actor)  # it may be unreachable and not dead
        for other in [other for other in running.values() if other.actor is actor]:
            del running[other.ref]
            try:
                finished.append((other.work.job, value_of(ray.get(other.ref, timeout=TELL_AFTER))))
            except RayError:
                lost.append(other.work)
        yield from finished
        if len(lost) == 1:
            lost[0].tries += 1
            if lost[0].tries == TRIES:
                raise PrefloopError(
                    f"workers died {TRIES} times on {lost[0].job}: {_reason(error)}; the same command continues from there"
                ) from error
        print(f"a worker died, and its batches are done again: {_reason(error)}", file=sys.stderr)
        for work in lost:
            work.is_suspect = True
        todo.again.extend(lost)
        if actor in self._ready:
            self._ready.remove(actor)
            self._add_actor()


@dataclass
class _Work(Generic[J]):
    job: J
    tries: int = 0
    """Workers that died when they had this job alone."""
    is_suspect: bool = False
    """It was with a worker that died, and is given out alone."""


@dataclass(frozen=True)
class _Task:
    ref: ray.ObjectRef
    actor: Any
    work: _Work


class _Todo(Generic[J]):
    def __init__(self, jobs: Iterator[J]) -> None:
        self._jobs, self._is_drawn = jobs, False
        self.again: deque[_Work[J]] = deque()

    @property
    def is_empty(self) -> bool:
        return self._is_drawn and not self.again

    def next(self) -> "_Work[J] | None":
        if self.again:
            return self.again.popleft()
        for job in self._jobs:
            return _Work(job)
        self._is_drawn = True
        return None


def _connect(n: int, device: str | None) -> dict[str, Any]:
    """Connect to RAY_ADDRESS, or start Ray on this machine until the process ends; the options of an actor.

    Raises:
        UsageError: if this machine has fewer GPUs than workers, or RAY_ADDRESS is for Ray's client.
        PrefloopError: if no cluster answers.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise UsageError(f"RAY_ADDRESS={address} is for Ray's client; run the command with `ray job submit` instead")
    if not ray.is_initialized():
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        # Ray would report its use to its makers, and give way to every other process
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}.items():
            os.environ.setdefault(name, value)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address or "local", **quiet, **({} if address else own))
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            at = f"no Ray cluster answers at RAY_ADDRESS={address}" if address else "Ray cannot be started"
            cure = "; if the cluster wants a token, set RAY_AUTH_MODE=token" if address else ""
            raise PrefloopError(f"{at}: {_reason(error)}{cure}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray ends the process; the stage ends between two batches
    resources = ray.cluster_resources()
    n_gpus = int(resources.get("GPU", 0))
    on_gpu = n_gpus > 0 if device is None else device.startswith("cuda")
    if on_gpu and not address and n > n_gpus:
        cure = "give fewer --workers" if n_gpus else "leave out --device to use its processors"
        raise UsageError(f"{n} workers need a GPU each, and this machine has {n_gpus or 'none'}; {cure}")
    share = 1.0 if on_gpu or address else resources["CPU"] / n
    return {
        "num_gpus": int(on_gpu),
        "num_cpus": int(share) if share >= 1 else share,  # as many threads for its arithmetic
        "max_concurrency": AHEAD,
    }


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
