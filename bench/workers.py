"""Try several workers: what they cost, and whether the images stay the same when workers, nodes or the driver die.

    OMP_NUM_THREADS=1 python -m prefloop.bench.workers --images 200

Prints a row for each case. Nodes are three `ray start` on 127.0.0.2 to 4, GPUs are faked. It takes minutes.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

from prefloop.core.executor import pool_of
from prefloop.core.signals import StopSignal

PORT = 46379
HEAD = f"127.0.0.2:{PORT}"
BATCH = 8
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Processes:
    """The processes of a case: those with its mark in their environment."""

    mark: str = field(default_factory=lambda: f"mark-{uuid4()}")
    seconds: dict[int, float] = field(default_factory=dict)
    """Processor time by process, as last seen."""

    def environment(self, **more: str) -> dict[str, str]:
        return os.environ | {"PREFLOOP_BENCH": self.mark, "RAY_AUTH_MODE": "token"} | more

    def living(self, word: str = "") -> list[int]:
        """Those with a word in their command line."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):
                if self.mark.encode() not in (folder / "environ").read_bytes():
                    continue
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                self.seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / TICK
                if word in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.3):
                self.living()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def left_after(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while (left := self.living()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return len(left)


@dataclass
class Case:
    folder: Path
    n_images: int
    processes: Processes = field(default_factory=Processes)

    def start(self, workers: int, *words: str, **more: str) -> subprocess.Popen:
        arguments = ["generate", "--prompts", "shapes", "--limit", str(self.n_images // 4), "--batch-size", str(BATCH)]
        arguments += ["--store", str(self.folder), "--workers", str(workers), *words]
        return subprocess.Popen(
            [sys.executable, "-m", "prefloop", *arguments],
            env=self.processes.environment(**more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def images(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "images").rglob("*.png"))

    def wait_for(self, n: int, process: subprocess.Popen) -> None:
        while process.poll() is None and len(self.images()) < n:
            time.sleep(0.05)


def kill_worker(case: Case, _: subprocess.Popen) -> None:
    os.kill(case.processes.living("ray::Worker")[0], signal.SIGKILL)


def signal_driver(number: int, case: Case, process: subprocess.Popen) -> None:
    """Then the same command again."""
    os.kill(process.pid, number)
    began = time.monotonic()
    code = process.wait()
    while case.processes.living("ray::Worker"):
        time.sleep(0.2)
    workers = time.monotonic() - began
    left = case.processes.left_after(120)
    took = time.monotonic() - began
    print(
        f"    exit {code}; the last worker ended {workers:.0f} s after the signal; {left} processes left after {took:.0f} s"
    )
    case.start(2).wait()


@contextmanager
def node(processes: Processes, host: int, *words: str) -> Iterator[subprocess.Popen]:
    words = ("--node-ip-address", f"127.0.0.{host}", "--disable-usage-stats", "--block", *words)
    started = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
        env=processes.environment(RAY_worker_niceness="0"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        started.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.wait(30)


@contextmanager
def cluster(processes: Processes, *words: str) -> Iterator[None]:
    with node(processes, 2, "--head", "--port", str(PORT), "--include-dashboard", "false", *words):
        time.sleep(10)
        yield


def lose_node(lost: subprocess.Popen, case: Case, _: subprocess.Popen) -> None:
    """Its raylet and its workers at once, as if the machine were switched off."""
    raylets = [pid for pid in case.processes.living("raylet/raylet") if _parent(pid) == lost.pid]
    every = case.processes.living("ray::Worker")
    workers = [pid for pid in every if _parent(pid) in raylets]
    for pid in [*workers, *raylets]:
        os.kill(pid, signal.SIGKILL)
    print(f"    {len(raylets)} node lost with {len(workers)} of {len(every)} workers")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def report(what: str, case: Case, expected: list[str] | None, process: subprocess.Popen | None, began: float) -> None:
    images = case.images()
    same = "first" if expected is None else "same" if images == expected else "DIFFERENT"
    code = "" if process is None else f"exit {process.returncode}"
    total = sum(case.processes.seconds.values())
    print(
        f"{what:<40}{len(images):>5} images {same:<10}{code:<8}{total:7.1f} CPU s {time.monotonic() - began:6.0f} s",
        flush=True,
    )


def run_case(
    what: str,
    case: Case,
    expected: list[str] | None,
    workers: int = 2,
    then: Callable[[Case, subprocess.Popen], None] | None = None,
    **more: str,
) -> None:
    began = time.monotonic()
    with case.processes.watched():
        process = case.start(workers, **more)
        if then is not None:
            case.wait_for(case.n_images // 4, process)
            then(case, process)
        process.wait()
    report(what, case, expected, process, began)


class Counted:
    """Counts jobs in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file


def visible_gpus(_: Counted, __: int) -> str:
    time.sleep(1)
    return f"{os.environ.get('CUDA_VISIBLE_DEVICES')}"


def megabyte(counted: Counted, _: int) -> bytes:
    with open(counted.file, "a") as file:
        file.write("x")
    return bytes(1_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--only", help="Run the cases whose name contains this, besides the first.")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="prefloop-workers-"))
    os.environ.pop("RAY_ADDRESS", None)
    try:
        run_cases(root, arguments.images, arguments.only or "")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run_cases(root: Path, n_images: int, only: str) -> None:
    def case(name: str) -> Case:
        return Case(root / name, n_images)

    first = case("one")
    run_case("one process", first, None, workers=1)
    expected = first.images()
    cases: list[tuple[str, Callable[[Case, subprocess.Popen], None] | None]] = [
        ("2 workers", None),
        ("a worker killed", kill_worker),
        ("SIGTERM, then repeated", partial(signal_driver, signal.SIGTERM)),
        ("the driver killed, then repeated", partial(signal_driver, signal.SIGKILL)),
    ]
    for what, then in cases:
        if only in what:
            run_case(what, case(what.replace(" ", "-")), expected, then=then)
    if only in "a node joins, one is lost":
        one = case("nodes")
        with (
            cluster(one.processes, "--num-cpus", "1"),
            node(one.processes, 3, "--address", HEAD, "--num-cpus", "1") as lost,
        ):
            began = time.monotonic()
            with one.processes.watched():
                process = one.start(3, RAY_ADDRESS=HEAD)
                one.wait_for(n_images // 4, process)
                with node(one.processes, 4, "--address", HEAD, "--num-cpus", "1"):
                    one.wait_for(n_images // 2, process)
                    lose_node(lost, one, process)
                    process.wait()
                    report("a node joins, one is lost", one, expected, process, began)
    if only in "faked GPUs, slow driver":
        processes = Processes()
        os.environ.update(processes.environment())
        with cluster(processes, "--num-gpus", "2", "--num-cpus", "4"):
            os.environ["RAY_ADDRESS"] = HEAD
            with pool_of(2, partial(Counted, root / "gpus")) as pool:
                used = {gpus for _, gpus in pool.done(visible_gpus, range(8), StopSignal())}
            print(f"faked GPUs: workers see {sorted(used)}", flush=True)
            done = root / "done"
            done.touch()
            with pool_of(2, partial(Counted, done)) as pool:
                most = 0
                for number, _ in enumerate(pool.done(megabyte, range(30), StopSignal()), 1):
                    time.sleep(0.1)
                    most = max(most, len(done.read_text()) - number)
            print(f"slow driver: at most {most} results of 2 workers wait", flush=True)


if __name__ == "__main__":
    main()
