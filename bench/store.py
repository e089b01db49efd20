"""Measure a store at growing numbers of pairs, against what it is meant to keep to.

    OMP_NUM_THREADS=1 python -m prefloop.bench.store --folder FOLDER --queue 10000 --queue 100000 --queue 1000000

Makes the stores below the folder, prints a line for each step, and removes them again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from .store_steps import N_JPEGS, STEPS, write_pickapic

# step → seconds at a million pairs
TARGETS = {
    "take": None,
    "import": 50.0,  # 20,000 pairs a second
    "open": 0.1,
    "stats": 2.0,
    "agreement": 5.0,
    "win rates": 5.0,
    "nothing unscored": 2.0,
    "all unscored": 2.0,
    "manifest": 5.0,
    "rebuild": 180.0,
}
ONCE = ("make", "take", "import", "rebuild")
MILLION = 1_000_000
PEAK_MB, FILE_MB = 2048.0, 1600.0


def measure(folder: Path, n: int, rounds: int) -> dict[str, Any]:
    """Every step at N pairs, each in a process of its own; the median of the rounds, and the largest peak.

    Returns:
        `steps`: n, process and wall (seconds), peak_mb, by name; `file_mb` of the database, after its rebuild and before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, pickapic = folder / f"store-{n}", folder / f"pickapic-{n}.parquet"
    pictures = folder / f"pictures-{n}.parquet"
    found: dict[str, Any] = {"pairs": n, "steps": {}}
    try:
        write_pickapic(pickapic, n)
        write_pickapic(pictures, N_JPEGS)
        for name in STEPS:
            if name == "rebuild":
                found["taken_file_mb"] = _megabytes(path)
            times = [_step(name, path, n) for _ in range(1 if name in ONCE else rounds)]
            found["steps"][name] = {
                "n": times[0]["n"],
                "process": median(one["process"] for one in times),
                "wall": median(one["wall"] for one in times),
                "peak_mb": max(one["peak_mb"] for one in times),
            }
            _say(n, name, found["steps"][name])
        found["file_mb"] = _megabytes(path)
        found["imported_file_mb"] = _megabytes(folder / f"imported-{n}")
    finally:
        for store in (path, folder / f"imported-{n}"):
            shutil.rmtree(store, ignore_errors=True)
        for file in (pickapic, pictures):
            file.unlink(missing_ok=True)
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """What a million pairs did not keep to, by process time."""
    said = [
        f"{name}: {found['steps'][name]['process']:.2f} s, target {target} s"
        for name, target in TARGETS.items()
        if target is not None and found["steps"][name]["process"] > target
    ]
    said += [
        f"{name}: {step['peak_mb']:.0f} MB of memory, target {PEAK_MB:.0f}"
        for name, step in found["steps"].items()
        if step["peak_mb"] > PEAK_MB
    ]
    if (largest := max(found["file_mb"], found["taken_file_mb"])) > FILE_MB:
        said.append(f"file: {largest:.0f} MB, target {FILE_MB:.0f}")
    return said


def _step(name: str, path: Path, n: int) -> dict[str, float]:
    command = [sys.executable, "-m", "prefloop.bench.store_steps", name, str(path), str(n)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{name} failed: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def _megabytes(store: Path) -> float:
    return (store / "pairs.duckdb").stat().st_size / 1e6


def _say(n: int, name: str, step: dict[str, float]) -> None:
    target = TARGETS.get(name)
    meant = f", target {target:g} s" if target and n == MILLION else ""
    print(
        f"{n:>9,} {name:<17}{step['process']:8.2f} s of process, {step['wall']:8.2f} s of wall, "
        f"{step['peak_mb']:6.0f} MB{meant}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--queue", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="Write what was found to this file.")
    parser.add_argument("--plot", type=Path, help="Write a plot to this file.")
    given = parser.parse_args()
    found = [measure(given.folder, n, given.rounds) for n in given.pairs or [10_000, 100_000, MILLION]]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    if given.plot:
        from .store_plot import plot

        plot(found, TARGETS, given.plot)
    for one in found:
        print(f"{one['pairs']:,} pairs: {one['taken_file_mb']:.0f} MB, {one['file_mb']:.0f} MB rebuilt")
        if one["pairs"] == MILLION:
            print("\n".join(missed(one)) or "every target is kept")


if __name__ == "__main__":
    main()
