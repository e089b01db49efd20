"""Estimate a training run from configs and settings alone, and say what other settings would save."""

from dataclasses import dataclass, replace

from ...core.text import duration, percent, size
from ...models.cost.speed import DeviceSpeed
from ...models.families import Family
from .cards import auto_text, cards_text, checkpointing_by_card, options_by_card, quantized_settings
from .cost_model import (
    OVERHEAD_BYTES,
    CostModel,
    CostSettings,
    DatasetSize,
    Phase,
    cache_bytes,
    prompt_bytes,
)


@dataclass(frozen=True)
class Tradeoff:
    """What changing one setting does to the peak memory of training, caching excluded, and to the total time."""

    option: str
    saved_bytes: int
    time_change: float | None
    """Fraction; negative is faster. None for --quantize: what dequantizing takes is not estimated."""


@dataclass(frozen=True)
class Estimate:
    """`dataclasses.asdict` turns it into JSON."""

    n_pairs: int
    n_steps: int
    pairs_per_step: int
    epochs: float
    cache_bytes: dict[str, int]
    """On disk: latents and prompt embeddings."""
    bytes_per_prompt: int
    """Of the prompt embeddings, at most: prompts may have fewer tokens."""
    n_parameters: int
    """Of the U-Net or transformer, without a LoRA's."""
    n_trained: int
    n_linear: int
    """Linear layers of the U-Net or transformer."""
    n_lora_layers: int
    """Linear layers that the LoRA is put on; 0 without one."""
    memory_bytes: dict[Phase, dict[str, int]]
    """Per device, by phase and by purpose; no two phases are at once."""
    peak_phase: Phase
    peak_bytes: int
    cards: dict[float, str | None]
    """GiB of a GPU's memory → the options that make the run fit, "" for none; None if it is too small."""
    auto_checkpointing: dict[float, bool]
    """GiB of a GPU's memory → whether gradient checkpointing auto turns it on; empty without auto."""
    gradient_checkpointing: bool
    """Whether it is on here."""
    seconds: dict[str, float]
    """Caching, before and between the steps; the reference model's errors; training; and validation."""
    total_seconds: float
    validation_share: float
    """Fraction of the time after caching."""
    flops_per_pair: int
    """In a training step, without the reference model's."""
    speed: DeviceSpeed
    mixed_precision: str
    tradeoffs: tuple[Tradeoff, ...]
    """Those that save at least 1 % of memory or time, the one that saves most memory first."""


def estimate(family: Family, data: DatasetSize, settings: CostSettings, speed: DeviceSpeed) -> Estimate:
    """Estimate memory, disk and time of a run. Takes seconds and little memory, whatever the model's size."""
    costs = CostModel(family, data, speed)
    memory, seconds = costs.memory(settings), costs.seconds(settings)
    phase, peak = _peak(memory)
    tradeoffs = []
    for option, changed in _alternatives(settings).items():
        saved = _training_bytes(memory) - _training_bytes(costs.memory(changed))
        change = sum(costs.seconds(changed).values()) / sum(seconds.values()) - 1
        if saved >= _training_bytes(memory) / 100 or change <= -0.01:
            tradeoffs.append(Tradeoff(option, saved, change if changed.quantize == settings.quantize else None))
    pairs_per_step = settings.train_batch_size * settings.gradient_accumulation_steps * settings.n_processes
    step, component = costs.training_pass(settings), costs.component(settings)
    return Estimate(
        n_pairs=data.n_pairs,
        n_steps=settings.max_train_steps,
        pairs_per_step=pairs_per_step,
        epochs=settings.max_train_steps * pairs_per_step / data.n_pairs,
        cache_bytes=cache_bytes(family, data, settings),
        bytes_per_prompt=prompt_bytes(family),
        n_parameters=component.n_parameters,
        n_trained=component.n_trained,
        n_linear=component.n_linear,
        n_lora_layers=component.n_lora_layers,
        memory_bytes=memory,
        peak_phase=phase,
        peak_bytes=peak,
        cards=options_by_card(costs, settings),
        auto_checkpointing=checkpointing_by_card(costs, settings),
        gradient_checkpointing=settings.gradient_checkpointing,
        seconds=seconds,
        total_seconds=sum(seconds.values()),
        validation_share=seconds["validation"] / (sum(seconds.values()) - seconds["caching"]),
        flops_per_pair=(step.forward_flops + step.backward_flops) // settings.train_batch_size,
        speed=speed,
        mixed_precision=settings.mixed_precision,
        tradeoffs=tuple(sorted(tradeoffs, key=lambda tradeoff: -tradeoff.saved_bytes)),
    )


def _alternatives(settings: CostSettings) -> dict[str, CostSettings]:
    """Settings that cost less and train on the same pairs, by the options that choose them."""
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
    changes |= dict(quantized_settings(settings))
    if settings.has_reference and not settings.reference_draws:
        changes["--reference-draws 1"] = replace(settings, reference_draws=True)
    return changes


def _training_bytes(memory: dict[Phase, dict[str, int]]) -> int:
    return max(sum(parts.values()) for phase, parts in memory.items() if phase != "caching")


def _peak(memory: dict[Phase, dict[str, int]]) -> tuple[Phase, int]:
    phase = max(memory, key=lambda phase: sum(memory[phase].values()))
    return phase, sum(memory[phase].values())


def format_estimate(estimate: Estimate) -> str:
    """About a dozen lines for the terminal."""
    lines = [
        f"pairs     {estimate.n_pairs:,}; {estimate.n_steps:,} steps of {estimate.pairs_per_step:,} pairs = "
        f"{estimate.epochs:.3g} epochs",
        f"memory    peak of {size(estimate.peak_bytes)} per device, during {estimate.peak_phase}",
    ]
    for phase, parts in estimate.memory_bytes.items():
        sizes = ", ".join(f"{name} {size(n)}" for name, n in sorted(parts.items(), key=lambda part: -part[1]))
        lines.append(f"          {phase} {size(sum(parts.values()))}: {sizes}")
    disk = ", ".join(f"{name} {size(n)}" for name, n in estimate.cache_bytes.items())
    lines.append(
        f"disk      {disk}, in the store's cache; each prompt is counted at the greatest length, "
        f"{size(estimate.bytes_per_prompt)}"
    )
    times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in estimate.seconds.items() if seconds)
    if estimate.seconds["validation"]:
        times += f" ({percent(estimate.validation_share)} of the run)"
    lines.append(f"time      {duration(estimate.total_seconds)}: {times}")
    auto = auto_text(estimate.auto_checkpointing, estimate.gradient_checkpointing)
    lines.append(f"cards     {cards_text(estimate.cards)}{auto}")
    for number, tradeoff in enumerate(estimate.tradeoffs):
        start = "options   " if number == 0 else "          "
        memory, time_taken = _memory_change(tradeoff.saved_bytes), _time_change(tradeoff.time_change)
        lines.append(f"{start}{tradeoff.option}: {memory}, {time_taken}")
    speed = estimate.speed
    rate = speed.flops_per_second[estimate.mixed_precision]
    lines.append(
        f"These are estimates. FLOPs ({estimate.flops_per_pair / 1e12:.3g} TFLOP per pair and training step) and activations "
        f"are counted on the model's config; memory includes {size(OVERHEAD_BYTES)} of overhead for the driver and the "
        f"allocator; time assumes {percent(speed.utilization, 0)} of the {rate / 1e12:.3g} TFLOP/s that a matrix product reached on "
        f"{speed.device}, and excludes loading, checkpoints and dequantizing weights."
    )
    return "\n".join(lines)


def _memory_change(saved_bytes: int) -> str:
    return f"{size(abs(saved_bytes))} {'less' if saved_bytes >= 0 else 'more'} memory"


def _time_change(change: float | None) -> str:
    if change is None:
        return "more time, not estimated"
    if abs(change) < 0.005:
        return "about the same time"
    return f"{percent(abs(change), 0)} {'less' if change < 0 else 'more'} time"
