"""Measure a store at growing numbers of pairs, and compare with its targets.

    OMP_NUM_THREADS=1 python -m prefloop.bench.store --folder FOLDER --pairs 10000 --pairs 100000 --pairs 1000000

Creates the stores in the folder, prints a line for each step, and removes them again.
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
    "ingest": None,
    "import": 50.0,  # 20,000 pairs a second
    "open": 0.1,
    "stats": 2.0,
    "agreement": 5.0,
    "win rates": 5.0,
    "nothing unscored": 2.0,
    "all unscored": 2.0,
    "training list": 5.0,
    "train start": 10.0,
    "train resume": 10.0,
    "plan": 10.0,
    "open cache": 2.0,
    "small parts": None,
    "rebuild": 180.0,
}
ONCE = ("make", "ingest", "import", "rebuild", "write cache", "small parts")
MILLION = 1_000_000
PEAK_MB, FILE_MB = 2048.0, 1600.0
MORE_MB = 500.0
"""What the start of `train` may need beyond what it needs for few pairs, most of which is torch."""


def measure(folder: Path, n: int, rounds: int) -> dict[str, Any]:
    """Every step at N pairs, each in its own process; the median of the rounds, and the largest peak.

    Returns:
        `steps`: n, process and wall (seconds), peak_mb, by name; `file_mb` of the rebuilt database, `ingested_file_mb` before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, pickapic = folder / f"store-{n}", folder / f"pickapic-{n}.parquet"
    images = folder / f"images-{n}.parquet"
    result: dict[str, Any] = {"pairs": n, "steps": {}}
    try:
        write_pickapic(pickapic, n)
        write_pickapic(images, N_JPEGS)
        for name in STEPS:
            if name == "rebuild":
                result["ingested_file_mb"] = _megabytes(path)
            runs = [run_step(name, path, n) for _ in range(1 if name in ONCE else rounds)]
            result["steps"][name] = {
                "n": runs[0]["n"],
                "process": median(run["process"] for run in runs),
                "wall": median(run["wall"] for run in runs),
                "peak_mb": max(run["peak_mb"] for run in runs),
            }
            _print_step(n, name, result["steps"][name])
        result["file_mb"] = _megabytes(path)
        result["imported_file_mb"] = _megabytes(folder / f"imported-{n}")
    finally:
        for written in (path, *(folder / f"{name}-{n}" for name in ("imported", "parts", "run"))):
            shutil.rmtree(written, ignore_errors=True)
        for file in (pickapic, images):
            file.unlink(missing_ok=True)
    return result


def missed(result: dict[str, Any], few: dict[str, Any]) -> list[str]:
    """The targets for a million pairs that were missed, by process time.

    Args:
        few: the result of the smallest store.
    """
    lines = [
        f"{name}: {result['steps'][name]['process']:.2f} s, target {target} s"
        for name, target in TARGETS.items()
        if target is not None and result["steps"][name]["process"] > target
    ]
    lines += [
        f"{name}: {step['peak_mb']:.0f} MB of memory, target {PEAK_MB:.0f}"
        for name, step in result["steps"].items()
        if step["peak_mb"] > PEAK_MB
    ]
    for name in ("train start", "train resume"):
        more = result["steps"][name]["peak_mb"] - few["steps"][name]["peak_mb"]
        if more > MORE_MB:
            lines.append(f"{name}: {more:.0f} MB more than for {few['pairs']:,} pairs, target {MORE_MB:.0f}")
    if (largest := max(result["file_mb"], result["ingested_file_mb"])) > FILE_MB:
        lines.append(f"file: {largest:.0f} MB, target {FILE_MB:.0f}")
    return lines


def run_step(name: str, path: Path, n: int) -> dict[str, float]:
    """Run a step in its own process."""
    command = [sys.executable, "-m", "prefloop.bench.store_steps", name, str(path), str(n)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name} failed: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def _megabytes(store: Path) -> float:
    return (store / "pairs.duckdb").stat().st_size / 1e6


def _print_step(n: int, name: str, step: dict[str, float]) -> None:
    target = TARGETS.get(name)
    target_text = f", target {target:g} s" if target and n == MILLION else ""
    print(
        f"{n:>9,} {name:<17}{step['process']:8.2f} s process, {step['wall']:8.2f} s wall, "
        f"{step['peak_mb']:6.0f} MB{target_text}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pairs", type=int, action="append", help="Number of pairs; may be repeated.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="Write the results to this file.")
    parser.add_argument("--plot", type=Path, help="Write a plot to this file.")
    options = parser.parse_args()
    results = [measure(options.folder, n, options.rounds) for n in options.pairs or [10_000, 100_000, MILLION]]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.plot:
        from .store_plot import plot

        plot(results, TARGETS, options.plot)
    for result in results:
        print(f"{result['pairs']:,} pairs: {result['ingested_file_mb']:.0f} MB, {result['file_mb']:.0f} MB rebuilt")
        if result["pairs"] == MILLION:
            print("\n".join(missed(result, results[0])) or "every target is met")


if __name__ == "__main__":
    main()
