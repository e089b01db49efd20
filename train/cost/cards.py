"""Which GPUs a training run fits on, by their memory, and what makes it fit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .checkpointing import USABLE, needs_checkpointing
from .cost_model import CostModel, CostSettings

CARDS = (16, 24, 48, 80)
"""Memory of common GPUs, GiB."""
_AS_SET = ""


def options_by_card(
    costs: CostModel, settings: CostSettings, cards: Sequence[float] = CARDS
) -> dict[float, str | None]:
    """GiB of memory → the options that make a run on the same pairs fit: "" for none, None if nothing here is enough."""
    fitting: dict[float, str | None] = {}
    options: str | None = _AS_SET
    rest, peak = _smaller(settings), _peak(costs, settings)
    for card in sorted(cards, reverse=True):
        while peak > USABLE * card * 2**30:
            options, changed = next(rest, (None, None))
            if changed is None:
                return dict.fromkeys(sorted(cards)) | fitting
            peak = _peak(costs, changed)
        fitting[card] = options
    return dict(sorted(fitting.items()))


def _smaller(settings: CostSettings) -> Iterator[tuple[str, CostSettings]]:
    """Settings that need less and less memory, and train on the same pairs in each step."""
    options = []
    if not (settings.gradient_checkpointing or settings.auto_checkpointing):
        settings = replace(settings, gradient_checkpointing=True)
        options.append("--gradient-checkpointing")
        yield " ".join(options), settings
    if settings.train_batch_size > 1:
        n_passes = settings.train_batch_size * settings.gradient_accumulation_steps
        settings = replace(settings, train_batch_size=1, gradient_accumulation_steps=n_passes)
        options.append(f"--train-batch-size 1 --gradient-accumulation-steps {n_passes}")
        yield " ".join(options), settings
    for option, quantized in quantized_settings(settings):
        yield " ".join([*options, option]), quantized


def quantized_settings(settings: CostSettings) -> Iterator[tuple[str, CostSettings]]:
    """With the weights that a LoRA leaves as they are in 8 bits, then in 4."""
    if settings.lora_rank and settings.quantize == "no":
        yield "--quantize int8", replace(settings, quantize="int8")
    if settings.lora_rank and settings.quantize != "nf4":
        yield "--quantize nf4", replace(settings, quantize="nf4")


def _peak(costs: CostModel, settings: CostSettings) -> int:
    if settings.auto_checkpointing:  # which turns it on where it is needed
        settings = replace(settings, gradient_checkpointing=True)
    return max(sum(parts.values()) for parts in costs.memory(settings).values())


def checkpointing_by_card(
    costs: CostModel, settings: CostSettings, cards: Sequence[float] = CARDS
) -> dict[float, bool]:
    """GiB of memory → whether auto turns gradient checkpointing on; empty if the settings do not leave it to that."""
    if not settings.auto_checkpointing:
        return {}
    return {card: needs_checkpointing(costs, settings, int(card * 2**30)) for card in sorted(cards)}


def auto_text(checkpointing: Mapping[float, bool], here: bool) -> str:
    """Such as "; gradient checkpointing is auto: off here, on with 16 GB, off with 24, 48, 80 GB"."""
    words = {True: "on", False: "off"}
    sizes = {on: ", ".join(str(card) for card, is_on in checkpointing.items() if is_on == on) for on in words}
    parts = [f"{words[on]} with {listed} GB" for on, listed in sizes.items() if listed]
    return f"; gradient checkpointing is auto: {', '.join([f'{words[here]} here', *parts])}" if checkpointing else ""


def cards_text(fitting: Mapping[float, str | None]) -> str:
    """Such as "16 GB with --gradient-checkpointing; 24, 48, 80 GB as set"."""
    parts = []
    for options in dict.fromkeys(fitting.values()):
        sizes = ", ".join(str(card) for card, others in fitting.items() if others == options)
        how = "too small" if options is None else f"with {options}" if options else "as set"
        parts.append(f"{sizes} GB {how}")
    return "; ".join(parts)
