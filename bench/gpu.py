"""What a GPU reaches: its results compared with a CPU's, and training, scoring and generating at full size, with random weights.

    python -m prefloop.bench.gpu

or `make gpu`. Writes a page with the GPU's name to docs/gpu/. Needs no network, and an estimated 20 GB of disk and 20 minutes.
"""

import argparse
import gc
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import diffusers
import torch
import transformers
from PIL import Image
from transformers import CLIPConfig

from .. import __version__
from ..generate.config import GenerateConfig
from ..generate.estimate import flops_per_image
from ..generate.sampler import ImageSampler
from ..generate.stage import Generation
from ..models.families import family_of
from ..models.resolve import find_model
from ..relabel.scorers.pickscore import PickScore
from ..train.policy import HALF
from .measure import Clock, cost_of, matmul_rate, tensors_of
from .models import SIZES
from .ours import Ours
from .scoring import filled, save_pickscore, score_all
from .train_step import LORA_RANK, Bench, Precision, device_name

PACKAGE = Path(__file__).parents[1]
CHECKS = PACKAGE / "tests" / "gpu"
VIT_H: dict[str, dict[str, int]] = {  # the sizes of CLIP ViT-H/14, PickScore's backbone
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "projection_dim": 1024,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "projection_dim": 1024,
    },
}
SMALL_CLIP: dict[str, dict[str, int]] = {
    "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1},
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1},
}
STEPS = {"sd15": 25, "sdxl": 30, "tiny": 2}
"""Denoising steps of an image."""
# Pairs or images a second on one H100 or H200, from counted operations and the shares that good code reaches.
TARGETS = {
    ("sd15", "training, every weight"): 28.0,
    ("sd15", "training, LoRA"): 36.0,
    ("sdxl", "training, every weight"): 3.8,
    ("sdxl", "training, LoRA"): 5.0,
    ("PickScore, ViT-H", "scoring, bfloat16"): 500.0,  # 250 pairs
    ("sd15", "generating"): 4.0,
    ("sdxl", "generating"): 0.45,
}


@dataclass(frozen=True)
class Measured:
    per_second: float
    unit: str
    peak_bytes: int | None
    """The most that torch had allocated; None on a CPU, where it does not count."""
    share: float
    """Fraction of the operations per second that a large matrix product reaches in the same precision."""


@dataclass(frozen=True)
class Row:
    model: str
    what: str
    measured: Measured | str
    """Or why it was not."""

    def line(self) -> str:
        target = TARGETS.get((self.model, self.what))
        cells = [self.model, self.what]
        if isinstance(self.measured, str):
            cells += [self.measured, "", "", ""]
        else:
            peak = self.measured.peak_bytes
            cells.append(f"{self.measured.per_second:.3g} {self.measured.unit}/s")
            cells.append("" if target is None else f"{target:g}")
            cells.append("" if peak is None else f"{peak / 2**30:.1f}")
            cells.append(f"{self.measured.share:.0%}")
        return f"| {' | '.join(cells)} |"


class Measurement:
    """Measures on one device, in a folder for models and stores."""

    def __init__(self, device: torch.device, folder: Path, rounds: int = 5) -> None:
        self.device, self.folder, self.rounds = device, folder, rounds
        self.clock = Clock(device)

    def rate(self, call: Callable[[], object], n: int, unit: str, flops: int, precision: Precision) -> Measured:
        """Time calls that each do n pairs or images, after one to warm up.

        Args:
            flops: of one call.
        """
        call()
        self._reset_peak()
        start = time.perf_counter()
        for _ in range(self.rounds):
            call()
        self._wait()
        seconds = (time.perf_counter() - start) / self.rounds
        matmul = matmul_rate(self.device, HALF.get(precision, torch.float32), self.clock)
        return Measured(n / seconds, unit, self._peak(), flops / seconds / matmul)

    def training(self, bench: Bench, lora_rank: int, precision: Precision) -> Measured:
        """Optimizer steps of `train`, with everything cached."""
        ours = Ours(bench.config(lora_rank, 0, precision), bench.store)
        ours.step()  # so that the optimizer's state exists
        cost = cost_of(ours.step, tensors_of(ours.optimizer, *ours.modules))
        return self.rate(ours.step, bench.pairs, "pairs", cost.flops, precision)

    def generating(self, model: Path, name: str, precision: Precision, batch_size: int) -> Measured:
        """Images, from prompts to pixels."""
        dtype: Any = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
        config = GenerateConfig(
            model=str(model),
            num_inference_steps=STEPS[name],
            guidance_scale=7.5,
            resolution=SIZES[name].resolution,
            batch_size=batch_size,
            dtype=dtype,
            device=self.device.type,
        )
        found = find_model(str(model))
        sampler = ImageSampler(found, config)
        batch = [Generation(f"a red circle number {number}", 0, uuid4()) for number in range(batch_size)]
        flops = batch_size * flops_per_image(family_of(found), config)
        return self.rate(lambda: list(sampler.batches(batch)), batch_size, "images", flops, precision)

    def scoring(self, settings: dict[str, Any], n_images: int, precision: Precision) -> Measured:
        """Scores by PickScore, from files to the store."""
        dtype = str(HALF.get(precision, torch.float32)).removeprefix("torch.")
        checkpoint, size = self.folder / "pickscore", min(64, n_images)
        if not checkpoint.exists():
            save_pickscore(checkpoint, CLIPConfig(**settings))
        scorer = PickScore(str(checkpoint), self.device.type, dtype)
        store, task = filled(self.folder / f"scored in {dtype}", n_images // 2, 2)
        images = [Image.open(path) for _, *paths in task[: size // 2] for path in paths]
        prompts = [prompt for prompt, *_ in task[: size // 2] for _ in range(2)]
        score: Callable[[], object] = partial(scorer.score, prompts, images)
        score()
        flops = cost_of(score, []).flops * n_images // size
        return self.rate(lambda: score_all(scorer, store, size), n_images, "images", flops, precision)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset_peak(self) -> None:
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


def rows(device: torch.device, names: Sequence[str], precision: Precision) -> Iterator[Row]:
    """Everything that is measured, each as soon as it is known."""
    tiny = "tiny" in names
    with tempfile.TemporaryDirectory() as name:
        measurement = Measurement(device, Path(name), rounds=1 if tiny else 5)
        scorer, settings, n_images = ("PickScore, small", SMALL_CLIP, 4) if tiny else ("PickScore, ViT-H", VIT_H, 512)
        for kind in ("no", "bf16"):
            score = partial(measurement.scoring, settings, n_images, kind)
            dtype = str(HALF.get(kind, torch.float32)).removeprefix("torch.")
            yield Row(scorer, f"scoring, {dtype}", _attempt(score))
    for model in names:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            measurement = Measurement(device, folder, rounds=1 if tiny else 5)
            bench = Bench(model, folder, device, None, 1)
            for what, lora_rank in (("training, LoRA", LORA_RANK), ("training, every weight", 0)):
                yield Row(model, what, _attempt(partial(measurement.training, bench, lora_rank, precision)))
            batch_size = 2 if tiny else 16 if model == "sd15" else 8
            generate = partial(measurement.generating, folder / "model", model, precision, batch_size)
            yield Row(model, "generating", _attempt(generate))


def _attempt(measure: Callable[[], Measured]) -> Measured | str:
    """What was measured, or that memory was not enough."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        return "out of memory"
    finally:
        gc.collect()  # the trainer, whose parts refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def checks() -> tuple[bool, str]:
    """Compare the GPU's results with a CPU's; whether all agree, and the last lines that the tests print."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", str(CHECKS)]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True)
    print(done.stdout, done.stderr, file=sys.stderr)
    summary = [line for line in done.stdout.splitlines() if re.match(r"(FAILED|ERROR) |.*\d+ (passed|failed)", line)]
    return done.returncode == 0, "\n".join(summary)


def page(device: torch.device, precision: Precision, results: Sequence[Row], checked: str | None) -> str:
    """A Markdown page with what was measured."""
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    if torch.version.cuda:
        versions += f", CUDA {torch.version.cuda}"
    lines = [
        f"# {device_name(device)}",
        "",
        f"`python -m prefloop.bench.gpu`, prefloop {__version__}, {versions}, Python {platform.python_version()}. Random weights;",
        f"training and generating in {precision}. docs/benchmarks.md explains the columns.",
        "",
        "| model | what | rate | target, H100 or H200 | peak GiB | share of matmul |",
        "|---|---|---|---|---|---|",
        *(row.line() for row in results),
    ]
    if checked is not None:
        lines += ["", "Results compared with a CPU's (`tests/gpu`):", "", "```", checked, "```"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m prefloop.bench.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=PACKAGE / "docs" / "gpu", help="folder for the page")
    parser.add_argument("--model", choices=SIZES, action="append", help="may be repeated; default: sd15 and sdxl")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="bf16")
    parser.add_argument("--no-checks", action="store_true", help="measure only")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = options.model or ["sd15", "sdxl"]
    if device.type == "cpu" and names != ["tiny"]:
        parser.error("this machine has no GPU that torch can use; --model tiny tries the script on a CPU")
    path = options.output / f"{re.sub('[^a-z0-9]+', '-', device_name(device).lower()).strip('-')}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    agree, checked = (True, None) if options.no_checks else checks()
    results: list[Row] = []
    path.write_text(page(device, options.precision, results, checked))
    for row in rows(device, names, options.precision):
        results.append(row)
        print(row.line(), file=sys.stderr)
        path.write_text(page(device, options.precision, results, checked))  # what is known survives an end
    print(f"written to {path}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
