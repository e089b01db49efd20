"""Time relabeling with another rule over existing scores: `python -m prefloop.bench.rules --pairs 100000`."""

import argparse
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pyarrow as pa
from prefloop.relabel import RelabelConfig
from prefloop.relabel.labels import write_labels
from prefloop.relabel.scorers.registry import load_scorers
from prefloop.store import PairStore
from prefloop.store.journal import TABLES
from prefloop.store.pairstore import new_pair

CANDIDATES = 4


class First:
    """The name of random scores that no scorer computed."""

    name, revision, needs_prompt = "first", "1", False

    def score(self, prompts: list, images: list) -> list:
        raise AssertionError(f"{self.name} was called to score {len(prompts)} prompts, {len(images)} images")


class Second(First):
    name = "second"


def filled(folder: Path, n_pairs: int) -> PairStore:
    """A store of prompts with four images each, all six pairs, and two scores per image; without image files."""
    store, rng = PairStore.create(folder), np.random.default_rng(0)
    store.add_prompts([(f"prompt {number}", {}) for number in range(n_pairs // 6)])
    store.ingest()
    pairs, scores = [], []
    for (prompt,) in store.rows("select prompt_id from prompts"):
        images = [UUID(bytes=rng.bytes(16)) for _ in range(CANDIDATES)]
        pairs += [new_pair(prompt, a, b, "import") for at, a in enumerate(images) for b in images[at + 1 :]]
        scores += [(scorer, image, prompt) for scorer in ("first@1", "second@1") for image in images]
    store.append("pairs", pairs)
    values = rng.normal(size=len(scores)).astype(np.float32)
    columns = {
        "scorer": pa.array([scorer for scorer, _, _ in scores]),
        "image_id": pa.array([image.bytes for _, image, _ in scores], pa.uuid()),
        "prompt_id": pa.array([prompt.bytes for _, _, prompt in scores], pa.uuid()),
        "score": pa.array(values),
        "run_id": pa.nulls(len(scores), pa.uuid()),
    }
    store.append("scores", pa.table(columns, schema=TABLES["scores"]))
    store.ingest()
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    n_pairs = parser.parse_args().pairs
    names = ("prefloop.bench.rules:First", "prefloop.bench.rules:Second")
    with tempfile.TemporaryDirectory() as folder:
        store = filled(Path(folder) / "store", n_pairs)
        for rule, select in (
            ("majority", "all"),
            ("weighted", "all"),
            ("mean-rank", "all"),
            ("weighted", "best-worst"),
        ):
            config = RelabelConfig(scorers=names, rule=rule, select=select)  # type: ignore[arg-type]  # two of the literals
            for turn in ("first", "again"):
                start = time.perf_counter()
                new = write_labels(store, f"{rule} {select}", config, load_scorers(names, {}), ("import",), uuid4()).new
                print(f"{rule:<10}{select:<11}{turn:<6}{new:>8} new labels in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
