"""Compare a run of one epoch, from an empty cache, with the plain twin on the same pairs: process time with everything before
the first step.

    OMP_NUM_THREADS=1 python -m prefloop.bench.epochs

docs/benchmarks.md explains the output.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from ..core.signals import StopSignal
from ..store import PairStore, load_image
from ..train.config import TrainConfig
from ..train.crops import Crop, resize_and_crop
from ..train.pairs import select_pairs
from ..train.run_folder.saved_pairs import Selection
from ..train.trainer import Trainer
from .models import LABELER, SIZES, save_pairs, save_pipeline
from .plain_twin import Example, PlainTwin, TwinConfig

RATE, BETA = 1e-6, 5000.0


class Bench:
    """A model and pairs on disk, none of them held out."""

    def __init__(self, folder: Path, model: str, resolution: int | None, n_pairs: int, lora_rank: int) -> None:
        self.folder, self.lora_rank = folder, lora_rank
        size = SIZES[model] if resolution is None else replace(SIZES[model], resolution=resolution)
        self.size = size
        save_pipeline(size, folder / "model")
        self.store = PairStore.create(folder / "store")
        save_pairs(self.store, size, n_pairs)
        self.config = TrainConfig(
            output_dir=str(folder / "run"),
            labelers=(LABELER,),
            model=str(folder / "model"),
            resolution=size.resolution,
            lora_rank=lora_rank,
            beta=BETA,
            learning_rate=RATE,
            lr_scheduler="constant",
            lr_warmup_steps=0,
            train_batch_size=size.pairs,
            proportion_empty_prompts=0.0,
            checkpointing_steps=10**9,
            cpu=True,
        )
        pairs = select_pairs(self.store, self.config)
        n = len(pairs.train) // size.pairs * size.pairs
        self.pairs = replace(pairs, train=pairs.train[:n], validation=pairs.validation[:0])
        self.steps = n // size.pairs

    def ours(self, epochs: int) -> float:
        """Seconds of `train`, without the writing of its result."""
        for folder in (self.folder / "run", self.store.path / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        (self.folder / "run").mkdir()
        AcceleratorState._reset_state()
        config = replace(self.config, max_train_steps=epochs * self.steps)
        start = time.process_time()
        trainer = Trainer(config, self.store, StopSignal(), selection=Selection(self.pairs))
        trainer.finish = lambda run_id, policy=None: {}  # noqa: ARG005
        trainer.state.save = lambda step: None  # noqa: ARG005
        trainer.train("bench")
        return time.process_time() - start

    def twin(self, epochs: int) -> float:
        """Seconds of the twin, which decodes and encodes images in each step."""
        start = time.process_time()
        settings = TwinConfig(lora_rank=self.lora_rank, beta=BETA, learning_rate=RATE)
        twin = PlainTwin(self.folder / "model", settings, torch.device("cpu"))
        side = self.size.resolution
        shape = (4, side // 8, side // 8)
        generator = torch.Generator().manual_seed(0)
        for step in range(epochs * self.steps):
            examples = []
            for at in range(step * self.size.pairs, (step + 1) * self.size.pairs):
                pair = self.pairs.train[at % len(self.pairs.train)]
                paths = ((pair.chosen_path, pair.chosen), (pair.rejected_path, pair.rejected))
                pixels = [
                    resize_and_crop(load_image(self.store.path / path, image), Crop(side, side))[0]
                    for path, image in paths
                ]
                timestep = int(torch.randint(1000, (), generator=generator))
                noises = torch.randn((3, *shape), generator=generator)
                examples.append(Example(torch.stack(pixels), pair.prompt, timestep, noises[:2], noises[2]))
            twin.step(examples)
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser("python -m prefloop.bench.epochs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=("tiny", "small"), default="small")
    parser.add_argument("--resolution", type=int, help="instead of the model's own")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--epochs", type=int, action="append", help="may be repeated; 1 if not given")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.model, options.resolution, options.pairs, options.lora_rank)
        sides: dict[str, Callable[[int], float]] = {"twin": bench.twin, "ours": bench.ours}
        results = []
        for epochs in options.epochs or [1]:
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(options.rounds):
                for name, side in sides.items():
                    seconds[name].append(side(epochs))
                    print(f"{epochs} epochs, round {number + 1}, {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
            ratios = [twin / ours for twin, ours in zip(seconds["twin"], seconds["ours"], strict=True)]
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            results.append(
                {"epochs": epochs, "pairs": len(bench.pairs.train), "ratio": statistics.median(ratios)}
                | {"ratio_range": (min(ratios), max(ratios)), "seconds": medians}
            )
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for result in results:
        low, high = result["ratio_range"]
        print(
            f"{result['epochs']} epochs of {result['pairs']} pairs: {result['ratio']:.2f} ({low:.2f}–{high:.2f}), "
            f"{result['seconds']['twin']:.1f} s → {result['seconds']['ours']:.1f} s"
        )


if __name__ == "__main__":
    main()
