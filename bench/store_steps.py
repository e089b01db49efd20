"""The measured steps of a store, each run in its own process: seconds and peak memory."""

import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..core.id_columns import IdColumn
from ..relabel.embedding_cache import PART_SIZE, EmbeddingCache
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


def training_list(path: Path, _: int) -> int:
    """Select the training pairs of one labeler, and compute their fingerprint."""
    from ..train import TrainConfig
    from ..train.pairs import select_pairs

    start = Measured.begin()  # without loading torch
    pairs = select_pairs(PairStore.open(path), TrainConfig(output_dir="unused", labelers=(SCORERS[0].split("@")[0],)))
    pairs.fingerprint()
    Measured.begun = start
    return len(pairs.train) + len(pairs.validation)


def train_start(path: Path, n: int) -> int:
    """Select and save the pairs of a run, and compute the ids of their crops: what `train` does with all pairs before its first
    step."""
    shutil.rmtree(_run_folder(path, n), ignore_errors=True)
    return _begin_training(path, n)


def train_resume(path: Path, n: int) -> int:
    """The same for the run that `train_start` began, which also compares its labels with today's."""
    return _begin_training(path, n)


def _begin_training(path: Path, n: int) -> int:
    from ..train import TrainConfig
    from ..train.pairs import select_pairs
    from ..train.run_folder.saved_pairs import load_pairs, save_pairs, select_for_run

    store, output = PairStore.open(path), _run_folder(path, n)
    config = TrainConfig(output_dir=str(output), labelers=(SCORERS[0].split("@")[0],))
    start = Measured.begin()
    selection = select_for_run(config, store)
    selecting = Measured.since(start)

    # loads torch, as `train` does now
    from ..models.families import family_of
    from ..models.resolve import find_model
    from ..train.crop_plan import pair_crops

    family = family_of(find_model("shapes"))
    Measured.begun = tuple(now - seconds for now, seconds in zip(Measured.begin(), selecting, strict=True))
    pairs = load_pairs(output, config, store)
    if is_new := pairs is None:
        pairs = selection.pairs or select_pairs(store, config)
    n_images = pair_crops(pairs, config, family).crops.n_images
    if is_new:
        save_pairs(output, config, pairs, pairs)
        (output / "checkpoint-1").mkdir()  # without one a run begins again
    pairs.fingerprint()
    return n_images


def _run_folder(path: Path, n: int) -> Path:
    return path.parent / f"run-{n}"


def plan(path: Path, n: int) -> int:
    """The ids of 2N images of N/17 prompts, and which of them the store has, as `generate` begins."""
    from ..generate.config import GenerateConfig
    from ..generate.prompts import Prompt
    from ..generate.stage import plan_generations
    from ..models.resolve import find_model

    model, store = find_model("shapes"), PairStore.open(path)
    prompts = [Prompt(f"prompt {number}") for number in range(-(-n // PAIRS_PER_PROMPT))]
    config = GenerateConfig(images_per_prompt=2 * PAIRS_PER_PROMPT, num_inference_steps=1, guidance_scale=1.0)
    Measured.begun = Measured.begin()
    return len(plan_generations(config, model, prompts, store).missing)


def write_cache(path: Path, n: int) -> int:
    """Write the embeddings of 2N images, 16 numbers each."""
    cache, generator = EmbeddingCache(path / "cache" / "bench"), np.random.default_rng(0)
    for start in range(0, 2 * n, PART_SIZE):
        keys = generator.integers(0, 256, (min(PART_SIZE, 2 * n - start), 16), dtype=np.uint8).view("S16").ravel()
        cache.add(IdColumn(keys), np.zeros((len(keys), 16), np.float32))
    cache.flush()
    return 2 * n


def open_cache(path: Path, n: int) -> int:
    """Open that cache, and look up as many ids that it does not have, as `relabel` begins."""
    cache = EmbeddingCache(path / "cache" / "bench")
    keys = np.random.default_rng(1).integers(0, 256, (2 * n, 16), dtype=np.uint8).view("S16").ravel()
    return int((~cache.contains(keys)).sum())


def small_parts(path: Path, n: int) -> int:
    """Append N/100 batches of 32 scores, each a part, and ingest every 50; returns how many parts are left."""
    store = PairStore.create(path.parent / f"parts-{n}")
    row = {"scorer": SCORERS[0], "score": 0.0, "run_id": UUID(int=0)}
    for batch in range(n // 100):
        ids = [UUID(int=batch * 32 + number) for number in range(32)]
        store.append("scores", [row | {"image_id": image, "prompt_id": image} for image in ids])
        if batch % 50 == 49:
            store.ingest()
    store.ingest()
    left = sum(1 for _ in store.journal.iterdir())
    shutil.rmtree(store.path)
    return left


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
    "training list": training_list,
    "train start": train_start,
    "train resume": train_resume,
    "plan": plan,
    "write cache": write_cache,
    "open cache": open_cache,
    "small parts": small_parts,
    "rebuild": rebuild,
    "import": import_,
}


class Measured:
    """When a step begins, in process and wall seconds; a step that loads libraries first sets `begun` itself."""

    begun: tuple[float, ...] | None = None

    @staticmethod
    def begin() -> tuple[float, ...]:
        return time.process_time(), time.perf_counter()

    @staticmethod
    def since(begun: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(end - start for start, end in zip(begun, Measured.begin(), strict=True))


def measured(name: str, path: Path, n: int) -> dict[str, float]:
    """The step's count, process and wall seconds, and this process's peak memory."""
    Measured.begun = None
    start = Measured.begin()
    count = STEPS[name](path, n)
    process, wall = Measured.since(Measured.begun or start)
    return {"n": count, "process": process, "wall": wall, "peak_mb": _peak_mb()}


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
