"""Compare the speed of a training step with the plain twin's: in one process, in turns, on the same pairs and random draws.

    OMP_NUM_THREADS=1 python -m prefloop.bench.train_step

Ours is the training loop's own step; its caches are filled before the first turn. docs/benchmarks.md explains the output.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate.state import AcceleratorState

from ..store import PairStore
from ..train.config import TrainConfig
from ..train.policy import HALF
from .measure import Clock, Cost, Parts, cost_of, matmul_rate, tensors_of
from .models import LABELER, SIZES, save_pairs, save_pipeline
from .ours import Ours
from .plain_twin import Example, PlainTwin, TwinConfig

Precision = Literal["no", "fp16", "bf16"]
BETA = 5000.0
LEARNING_RATE = 1e-6
LORA_RANK = 16
PARTS = ("data", "reference", "forward and backward", "optimizer")


@dataclass(frozen=True)
class Side:
    """Measurements of the twin or of ours; medians over the rounds."""

    pairs_per_second: float
    share: float
    """Fraction of the operations per second that a large matrix product reaches in the same precision."""
    flops_per_pair: int
    peak_bytes: int
    seconds_per_pair: dict[str, float]
    """By part of the step."""


@dataclass(frozen=True)
class Result:
    variant: str
    precision: Precision
    ratio: float
    """The twin's time divided by ours: median over the rounds."""
    ratio_range: tuple[float, float]
    logit_difference: float | None
    """Largest difference between the steps' mean logits; None if the draws differ, because cached ones repeat."""
    twin: Side
    ours: Side


@dataclass
class _Contender:
    step: Callable[[list[Example]], float]
    """Runs one step; returns its mean logit."""
    side: Ours | PlainTwin
    cost: Cost = field(default_factory=lambda: Cost(0, 0))
    seconds: list[float] = field(default_factory=list)
    by_part: list[dict[str, float]] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)

    def medians(self, pairs: int, rate: float) -> Side:
        seconds = statistics.median(self.seconds)
        return Side(
            pairs / seconds,
            self.cost.flops / seconds / rate,
            self.cost.flops // pairs,
            self.cost.peak_bytes,
            {name: statistics.median(parts.get(name, 0.0) for parts in self.by_part) / pairs for name in PARTS},
        )


class Bench:
    """A model and its pairs on disk, in a folder of their own."""

    def __init__(self, model: str, folder: Path, device: torch.device, pairs: int | None, rounds: int) -> None:
        self.folder, self.device, self.rounds = folder, device, rounds
        self.size, self.clock = SIZES[model], Clock(device)
        self.pairs = pairs or self.size.pairs
        save_pipeline(self.size, folder / "model")
        self.store = PairStore.create(folder / "store")
        save_pairs(self.store, self.size, n_pairs=2 * self.pairs)

    def compare(self, lora_rank: int, precision: Precision) -> list[Result]:
        """Our step, with and without cached reference errors, against one twin's."""
        AcceleratorState._reset_state()  # otherwise ours would keep an earlier precision
        variant = "LoRA" if lora_rank else "full"
        ours = Ours(self.config(lora_rank, 0, precision), self.store)
        cached = Ours(self.config(lora_rank, 1, precision), self.store)
        twin = self._twin(lora_rank, precision)
        twin.unet.load_state_dict(ours.trainer.policy.component.state_dict())
        contenders = {
            "twin": _Contender(lambda examples: statistics.fmean(twin.step(examples)), twin),
            variant: _Contender(lambda _: ours.step(), ours),
            f"{variant}, cached reference": _Contender(lambda _: cached.step(), cached),
        }
        rate = self._measure(contenders, ours, precision)
        plain = contenders.pop("twin")
        results = []
        for name, contender in contenders.items():
            ratios = [a / b for a, b in zip(plain.seconds, contender.seconds, strict=True)]
            difference = None
            if contender.side is ours:
                difference = max(abs(a - b) for a, b in zip(plain.logits, contender.logits, strict=True))
            sides = (side.medians(self.pairs, rate) for side in (plain, contender))
            range_ = (min(ratios), max(ratios))
            results.append(Result(name, precision, statistics.median(ratios), range_, difference, *sides))
        return results

    def _measure(self, contenders: dict[str, _Contender], ours: Ours, precision: Precision) -> float:
        """Run every contender once per round; returns the rate of a matrix product."""
        parts, rate = Parts(self.clock), 0.0
        for contender in contenders.values():
            contender.side.watch(parts)
        for number in range(2 + self.rounds):  # the first is a warm-up, the second is counted instead of timed
            examples = ours.examples(number * self.pairs, self.pairs)
            rate = max(rate, matmul_rate(self.device, HALF.get(precision, torch.float32), self.clock))
            for name, contender in contenders.items():
                start = self.clock.mark()
                if number == 1:
                    step = partial(lambda c, batch: c.logits.append(c.step(batch)), contender, examples)
                    contender.cost = cost_of(step, _kept(contender.side))
                else:
                    contender.logits.append(contender.step(examples))
                seconds, by_part = self.clock.seconds(start, self.clock.mark()), parts.pop()
                print(f"{precision}, round {number} of {1 + self.rounds}, {name}: {seconds:.2f} s", file=sys.stderr)
                if number > 1:
                    contender.seconds.append(seconds)
                    contender.by_part.append(by_part | {"forward and backward": seconds - sum(by_part.values())})
        return rate

    def _twin(self, lora_rank: int, precision: Precision) -> PlainTwin:
        config = TwinConfig(
            lora_rank=lora_rank,
            beta=BETA,
            learning_rate=LEARNING_RATE,
            half=HALF.get(precision),
            gradient_checkpointing=self.size.is_xl,
            adafactor=self.size.is_xl and not lora_rank,
        )
        return PlainTwin(self.folder / "model", config, self.device)

    def config(self, lora_rank: int, reference_draws: int, precision: Precision) -> TrainConfig:
        """Settings of a training run of this model on these pairs."""
        on_cpu = self.device.type == "cpu"
        return TrainConfig(
            output_dir=str(self.folder / f"rank {lora_rank} cached {reference_draws} {precision}"),
            labelers=(LABELER,),
            model=str(self.folder / "model"),
            lora_rank=lora_rank,
            beta=BETA,
            learning_rate=LEARNING_RATE,
            lr_scheduler="constant",
            lr_warmup_steps=0,
            train_batch_size=self.pairs,
            max_train_steps=1000,
            proportion_empty_prompts=0.0,
            reference_draws=reference_draws,
            mixed_precision=precision,
            gradient_checkpointing=self.size.is_xl,
            # on a CPU a thread would use process time in another's turn
            dataloader_num_workers=0 if on_cpu else 1,
            cpu=on_cpu,
        )


def _kept(side: Ours | PlainTwin) -> list[torch.Tensor]:
    return tensors_of(side.optimizer, *side.modules)


def table(results: list[Result]) -> str:
    """Two Markdown tables: speed and memory, and where the time goes."""
    lines = [
        "| variant | precision | pairs/s twin → ours | ratio (range) | peak GiB | TFLOP per pair | share of matmul |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        a, b = result.twin, result.ours
        lines.append(
            f"| {result.variant} | {result.precision} | {a.pairs_per_second:.3f} → {b.pairs_per_second:.3f} "
            f"| {result.ratio:.2f} ({result.ratio_range[0]:.2f}–{result.ratio_range[1]:.2f}) "
            f"| {a.peak_bytes / 2**30:.2f} → {b.peak_bytes / 2**30:.2f} "
            f"| {a.flops_per_pair / 1e12:.3g} → {b.flops_per_pair / 1e12:.3g} | {a.share:.0%} → {b.share:.0%} |"
        )
    lines += ["", f"| ms per pair, twin → ours | {' | '.join(PARTS)} |", "|---" * (1 + len(PARTS)) + "|"]
    for result in results:
        times = ((result.twin.seconds_per_pair[name], result.ours.seconds_per_pair[name]) for name in PARTS)
        cells = " | ".join(f"{1000 * twin:.1f} → {1000 * ours:.1f}" for twin, ours in times)
        lines.append(f"| {result.variant}, {result.precision} | {cells} |")
    return "\n".join(lines)


def precisions(device: torch.device) -> Iterator[Precision]:
    """Precisions that the device supports in hardware."""
    if device.type == "cuda":
        yield from ("bf16", "fp16")
        return
    yield "no"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text().split():
        yield "bf16"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {torch.get_num_threads()} thread(s)"


def main() -> None:
    parser = argparse.ArgumentParser("python -m prefloop.bench.train_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=SIZES, help="default: small, on a GPU sd15; sd15 and sdxl need a GPU")
    parser.add_argument("--only", choices=("full", "lora"))
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), action="append", help="may be repeated")
    parser.add_argument("--pairs", type=int, help="pairs per optimizer step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = options.model or ("sd15" if device.type == "cuda" else "small")
    if device.type == "cpu" and model in ("sd15", "sdxl"):
        parser.error(f"{model} needs a GPU; use --model small or --model tiny")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, Path(folder), device, options.pairs, options.rounds)
        for precision in options.precision or precisions(device):
            for variant, lora_rank in (("full", 0), ("lora", LORA_RANK)):
                if options.only in (None, variant):
                    results += bench.compare(lora_rank, precision)
    if options.json:
        about = {"model": model, "device": device_name(device), "pairs": bench.pairs, "rounds": options.rounds}
        print(json.dumps(about | {"results": [asdict(result) for result in results]}, indent=2))
        return
    print(f"{model}, {bench.pairs} pairs per step, {options.rounds} rounds, {device_name(device)}\n\n{table(results)}")


if __name__ == "__main__":
    main()
