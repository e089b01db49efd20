"""The measured steps of a store, each run in its own process: seconds and peak memory."""

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..store import PairStore
from .big_store import PAIRS_PER_PROMPT, SCORERS, fill

SOURCES = ("generate", "import")
N_JPEGS = 2000


def make(path: Path, n: int) -> int:
    """Write the journal."""
    fill(PairStore.create(path), n)
    return n


def ingest(path: Path, _: int) -> int:
    """Ingest the journal into the tables, as the first command after many parts does."""
    return PairStore(path).ingest()


def open_(path: Path, _: int) -> int:
    PairStore.open(path)
    return 1


def stats(path: Path, _: int) -> int:
    return json.loads(_prefloop("store", "stats", "--json", "--store", path))["pairs"]


def agreement(path: Path, _: int) -> int:
    return json.loads(_prefloop("store", "query", "from agreement", "--format", "json", "--store", path))[0]["n"]


def win_rates(path: Path, _: int) -> int:
    rows = json.loads(_prefloop("store", "query", "from win_rates", "--format", "json", "--store", path))
    return sum(row["n"] for row in rows)


def nothing_unscored(path: Path, _: int) -> int:
    from ..relabel.scores import unscored

    assert not unscored(PairStore.open(path), SCORERS[0], SOURCES)
    return 1


def all_unscored(path: Path, _: int) -> int:
    """The work list of a scorer that has scored nothing yet."""
    from ..relabel.scores import unscored

    return len(unscored(PairStore.open(path), "new@1", SOURCES))


def manifest(path: Path, _: int) -> int:
    """Select the training pairs of one labeler, and compute their fingerprint."""
    from ..train import TrainConfig
    from ..train.pairs import select_pairs

    start = Measured.begin()  # without loading torch
    pairs = select_pairs(PairStore.open(path), TrainConfig(output_dir="unused", labelers=(SCORERS[0].split("@")[0],)))
    pairs.fingerprint()
    Measured.begun = start
    return len(pairs.train) + len(pairs.validation)


def rebuild(path: Path, _: int) -> int:
    return PairStore(path).rebuild()


def import_(path: Path, n: int) -> int:
    """Import a Pick-a-Pic file whose images the store has already, so that reading metadata takes the time."""
    store = path.parent / f"imported-{n}"
    _prefloop("store", "import", path.parent / f"images-{n}.parquet", "--store", store, "--json")
    Measured.begun = Measured.begin()
    summary = json.loads(
        _prefloop("store", "import", path.parent / f"pickapic-{n}.parquet", "--store", store, "--json")
    )
    assert summary["new_images"] == 0
    return summary["pairs"]


def write_pickapic(path: Path, n: int, seed: int = 0) -> None:
    """Write N rows in Pick-a-Pic's schema, with distinct pairs of two thousand small JPEGs."""
    generator = np.random.default_rng(seed)
    files = pa.array([_jpeg(number) for number in range(N_JPEGS)], pa.binary())
    numbers = np.arange(n)
    # every image is in the first rows
    first = np.concatenate([np.arange(N_JPEGS), generator.integers(0, N_JPEGS, n)])[:n]
    label = generator.choice([1.0, 0.0, 0.5], n, p=[0.45, 0.45, 0.1])
    prompts = pa.array(
        [f"a prompt of about sixty characters, as people write them: {k}" for k in range(n // PAIRS_PER_PROMPT + 1)]
    )
    columns = {
        "caption": prompts.take(pa.array(numbers // PAIRS_PER_PROMPT)),
        "jpg_0": files.take(pa.array(first)),
        # no pair twice in a prompt: each has a different distance between its two files
        "jpg_1": files.take(pa.array((first + 1 + numbers % PAIRS_PER_PROMPT) % len(files))),
        "label_0": pa.array(label),
        "label_1": pa.array(1 - label),
        "has_label": pa.repeat(pa.scalar(True), n),
        "model_0": pa.repeat(pa.scalar("sd15"), n),
        "model_1": pa.repeat(pa.scalar("sdxl"), n),
    }
    pq.write_table(pa.table(columns), path, row_group_size=20_000)


STEPS: dict[str, Callable[[Path, int], int]] = {
    "make": make,
    "ingest": ingest,
    "open": open_,
    "stats": stats,
    "agreement": agreement,
    "win rates": win_rates,
    "nothing unscored": nothing_unscored,
    "all unscored": all_unscored,
    "manifest": manifest,
    "rebuild": rebuild,
    "import": import_,
}


class Measured:
    """When a step begins, in process and wall seconds; a step that loads libraries first sets `begun` itself."""

    begun: tuple[float, float] | None = None

    @staticmethod
    def begin() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()


def measured(name: str, path: Path, n: int) -> dict[str, float]:
    """The step's count, process and wall seconds, and this process's peak memory."""
    Measured.begun = None
    start = Measured.begin()
    count = STEPS[name](path, n)
    end = Measured.begin()
    process, wall = Measured.begun or start
    return {"n": count, "process": end[0] - process, "wall": end[1] - wall, "peak_mb": _peak_mb()}


def _prefloop(*arguments: object) -> str:
    """Run a command in this process; returns what it prints."""
    from ..cli import app

    out = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with redirect_stdout(out):
        app([str(argument) for argument in arguments], standalone_mode=False)
    return out.buffer.getvalue().decode()  # type: ignore[attr-defined]  # a BytesIO


def _jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    # squares of eight pixels keep their color in a JPEG, and steps of 8 change its bytes
    color = (number % 32 * 8, number // 32 % 32 * 8, number // 1024 * 64)
    Image.new("RGB", (8, 8), color).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _peak_mb() -> float:
    """Peak memory of this process; getrusage would include the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
