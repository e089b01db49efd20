"""A stage's run: its row in the store, its end by a signal, and its progress bar."""

import datetime
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from .errors import Interrupted
from .pairstore import PairStore

_PACKAGES = ("prefloop", "torch", "diffusers", "transformers", "open_clip_torch", "accelerate", "peft", "duckdb")


@dataclass
class Run:
    """One call of a stage, as the `runs` table keeps it."""

    run_id: UUID
    kind: str
    config: Mapping
    summary: dict = field(default_factory=dict)
    parents: list[UUID] = field(default_factory=list)


class StopSignal:
    """Becomes `requested` at the first SIGINT or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self.number = 0
        self._at_once = False

    @property
    def requested(self) -> bool:
        return self.number != 0

    def check(self, done: str) -> None:
        """Raise Interrupted where a signal has come. `done` says what is safe."""
        if self.requested:
            raise Interrupted(f"interrupted: {done}; the same command goes on from here", self.number)

    def _handle(self, number: int, _frame: object) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        if self._at_once:
            self.check("nothing is lost")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal ends where it is: for what takes long and writes nothing, such as reading weights."""
        done = "nothing is lost"
        self.check(done)
        self._at_once = True
        try:
            yield
        except Exception:
            self._at_once = False
            self.check(done)  # libraries make errors of their own out of what ended them
            raise
        finally:
            self._at_once = False
        self.check(done)  # or go on without a word

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        try:
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever owns it handles signals
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def run(store: PairStore, kind: str, config: Any, parents: list[UUID] | None = None) -> Iterator[Run]:
    """Write a run's row when it begins and when it ends, in whatever way it ends."""
    settings = plain(asdict(config) if is_dataclass(config) and not isinstance(config, type) else config)
    this = Run(uuid4(), kind, settings, parents=parents or [])
    started = _now()

    def write(status: str, error: str | None = None) -> None:
        row = {
            "run_id": this.run_id,
            "kind": kind,
            "status": status,
            "started": started,
            "updated": _now(),
            "config": json.dumps(settings, sort_keys=True),
            "versions": json.dumps(versions()),
            "git_commit": _git_commit(),
            "parents": [str(parent) for parent in this.parents],
            "summary": json.dumps(plain(this.summary), sort_keys=True),
            "error": error and _utf8(error),
        }
        store.append("runs", [row])
        if status != "running":
            store.absorb_or_leave(wait=2.0 if status == "interrupted" else None)  # who ends a run does not wait long

    write("running")
    try:
        yield this
    except (Interrupted, KeyboardInterrupt) as error:
        write("interrupted", str(error))
        raise
    except BaseException as error:
        write("failed", f"{type(error).__name__}: {error}"[:2000])
        raise
    write("done")


def plain(value: Any) -> Any:
    """The value as JSON in UTF-8 knows it: paths and ids as text, tuples as lists, nan and inf as null."""
    if isinstance(value, Mapping):
        return {_utf8(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    if value is None or isinstance(value, int | float | bool):
        return value
    return _utf8(str(value))


def _utf8(text: str) -> str:
    """A text that the database can read; of a file's name that is not UTF-8, the other bytes are written as \\udcNN."""
    return text.encode(errors="backslashreplace").decode()


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The commit of prefloop's own checkout, where it runs from one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def quiet_libraries() -> None:
    """Silence the bars and advice of the libraries that are loaded: a stage shows one bar, its own."""
    import logging
    import warnings

    for name in ("diffusers", "transformers"):
        if name in sys.modules:
            sys.modules[name].utils.logging.disable_progress_bar()
            sys.modules[name].utils.logging.set_verbosity_error()
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns on the root logger
    warnings.filterwarnings("ignore", category=FutureWarning)


def progress(total: int, what: str, initial: int = 0):
    """A bar on a terminal; elsewhere a line every 30 seconds. Written to stderr."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        file=sys.stderr,
        mininterval=0.2 if terminal else 30,
        miniters=None if terminal else 1,
        maxinterval=10 if terminal else 30,
        dynamic_ncols=terminal,
    )
