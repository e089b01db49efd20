"""What a training run will need, said before anything heavy is loaded: from configs and settings alone."""

import time
from dataclasses import dataclass, replace

import torch

from .cost_model import CONTEXT_BYTES, HALF, Costs, Data, Phase, Pipeline, Settings, Speed, cache_bytes

GPU_SHARE = 0.3
"""Of a matrix product's rate. Good codebases reach 28 to 31 % of peak on these U-Nets: MLPerf's SD2 on an H200."""
CPU_SHARE = 0.5
"""Of a matrix product's rate. One thread, a 42M-parameter U-Net at 256 pixels: 0.67 by processor time, 0.44 by a busy
machine's clock."""


@dataclass(frozen=True)
class Lever:
    """One setting changed, and what that does to the peak of training, caching left out, and to the total time."""

    option: str
    saved_bytes: int
    time_change: float
    """Fraction; negative is quicker."""


@dataclass(frozen=True)
class Estimate:
    """`dataclasses.asdict` makes JSON of it."""

    n_pairs: int
    n_steps: int
    pairs_per_step: int
    epochs: float
    cache_bytes: dict[str, int]
    """On disk, of latents and of texts."""
    memory_bytes: dict[Phase, dict[str, int]]
    """Of one device, by phase and by what takes it; phases follow one another."""
    peak_phase: Phase
    peak_bytes: int
    seconds: dict[str, float]
    """Of caching, reference and training, wholly apart."""
    total_seconds: float
    flops_per_pair: int
    """Of a training step, without the reference's."""
    speed: Speed
    mixed_precision: str
    levers: tuple[Lever, ...]
    """Those that save a hundredth of memory or time or more; most memory first."""


def estimate(pipeline: Pipeline, data: Data, settings: Settings, speed: Speed) -> Estimate:
    """Needs seconds and no memory worth naming, whatever the model's size."""
    costs = Costs(pipeline, data, speed)
    memory, seconds = costs.memory(settings), costs.seconds(settings)
    phase, peak = _peak(memory)
    levers = []
    for option, changed in _changes(settings).items():
        saved = _training_bytes(memory) - _training_bytes(costs.memory(changed))
        change = sum(costs.seconds(changed).values()) / sum(seconds.values()) - 1
        if saved >= _training_bytes(memory) / 100 or change <= -0.01:
            levers.append(Lever(option, saved, change))
    pairs_per_step = settings.train_batch_size * settings.gradient_accumulation_steps * settings.n_processes
    one = costs.training_pass(settings)
    return Estimate(
        n_pairs=data.n_pairs,
        n_steps=settings.max_train_steps,
        pairs_per_step=pairs_per_step,
        epochs=settings.max_train_steps * pairs_per_step / data.n_pairs,
        cache_bytes=cache_bytes(pipeline, data, settings),
        memory_bytes=memory,
        peak_phase=phase,
        peak_bytes=peak,
        seconds=seconds,
        total_seconds=sum(seconds.values()),
        flops_per_pair=(one.forward_flops + one.backward_flops) // settings.train_batch_size,
        speed=speed,
        mixed_precision=settings.mixed_precision,
        levers=tuple(sorted(levers, key=lambda lever: -lever.saved_bytes)),
    )


def _changes(settings: Settings) -> dict[str, Settings]:
    """What may be changed about a run without changing what it learns from."""
    changes = {}
    if settings.lora_rank == 0:
        changes["--lora-rank 16"] = replace(settings, lora_rank=16)
    if not settings.gradient_checkpointing:
        changes["--gradient-checkpointing"] = replace(settings, gradient_checkpointing=True)
    if settings.train_batch_size % 2 == 0:
        half, twice = settings.train_batch_size // 2, settings.gradient_accumulation_steps * 2
        changes[f"--train-batch-size {half} --gradient-accumulation-steps {twice}"] = replace(
            settings, train_batch_size=half, gradient_accumulation_steps=twice
        )
    if settings.mixed_precision == "no":
        changes["--mixed-precision bf16"] = replace(settings, mixed_precision="bf16")
    if settings.optimizer == "adamw":
        changes["--optimizer adafactor"] = replace(settings, optimizer="adafactor")
        changes["--optimizer adamw8bit"] = replace(settings, optimizer="adamw8bit")
    if settings.has_reference and not settings.reference_draws:
        changes["--reference-draws 1"] = replace(settings, reference_draws=True)
    return changes


def _training_bytes(memory: dict[Phase, dict[str, int]]) -> int:
    return max(sum(parts.values()) for phase, parts in memory.items() if phase != "caching")


def _peak(memory: dict[Phase, dict[str, int]]) -> tuple[Phase, int]:
    phase = max(memory, key=lambda phase: sum(memory[phase].values()))
    return phase, sum(memory[phase].values())


def measured_speed(device: torch.device) -> Speed:
    """How quickly this device multiplies matrices; takes about half a second."""
    rates = {precision: _matmul_rate(device, half or torch.float32) for precision, half in HALF.items()}
    return Speed(str(device), rates, CPU_SHARE if device.type == "cpu" else GPU_SHARE)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the first of ever larger products that takes long enough to be measured."""
    generator = torch.Generator(device).manual_seed(0)
    n, seconds = 64, 0.0
    while seconds < 0.02 and n < 8192:
        n *= 2
        # not zeros: those a GPU multiplies more quickly
        matrix = torch.randn((n, n), generator=generator, device=device).to(dtype)
        seconds = min(_matmul_seconds(matrix) for _ in range(3))
    return 2 * n**3 / seconds


def _matmul_seconds(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # which waits for the device
    return time.perf_counter() - start


def text(estimate: Estimate) -> str:
    """A dozen lines for people."""
    one = estimate
    lines = [
        f"pairs     {one.n_pairs:,}; {one.n_steps:,} steps of {one.pairs_per_step:,} pairs are {one.epochs:.3g} epochs",
        f"memory    {_size(one.peak_bytes)} on each device, at its peak:",
    ]
    for phase, parts in one.memory_bytes.items():
        named = ", ".join(f"{name} {_size(n)}" for name, n in sorted(parts.items(), key=lambda part: -part[1]))
        lines.append(f"          {_size(sum(parts.values()))} in {phase}: {named}")
    disk = ", ".join(f"{name} {_size(n)}" for name, n in one.cache_bytes.items())
    lines.append(f"disk      {disk}, in the store's cache")
    times = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in one.seconds.items() if seconds)
    lines.append(f"time      {_duration(one.total_seconds)}: {times}")
    for number, lever in enumerate(one.levers):
        start = "options   " if number == 0 else "          "
        lines.append(f"{start}{lever.option}: {_memory_change(lever.saved_bytes)}, {_time_change(lever.time_change)}")
    rate = one.speed.flops_per_second[one.mixed_precision]
    lines.append(
        f"An estimate. Operations ({one.flops_per_pair / 1e12:.3g} TFLOP a pair and training step) and activations are "
        f"counted on the model's config; memory adds {_size(CONTEXT_BYTES)} for the driver; time takes "
        f"{one.speed.share:.0%} of the {rate / 1e12:.3g} TFLOP/s that a matrix product reached on {one.speed.device}, "
        "and leaves out loading, validation and checkpoints."
    )
    return "\n".join(lines)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.3g} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.3g} MiB"


def _memory_change(saved_bytes: int) -> str:
    return f"{'saves' if saved_bytes >= 0 else 'costs'} {_size(abs(saved_bytes))}"


def _time_change(change: float) -> str:
    if abs(change) < 0.005:
        return "time about the same"
    return f"{'saves' if change < 0 else 'costs'} {abs(change):.0%} of the time"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"
