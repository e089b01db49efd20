"""The disk space a checkpoint needs, and the message when memory runs out."""

import re
from pathlib import Path

from ..models.model import Model
from .config import TrainConfig

_WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")  # not a variant such as .fp16


def checkpoint_bytes(config: TrainConfig, model: Model) -> int:
    """Lower bound of a checkpoint's size, before anything is loaded; 0 if it is not known.

    It holds all weights, to resume from and to load; AdamW adds two moments of each.
    """
    if config.lora_rank:
        return 0
    paths = Path(config.init_from or Path(model.root.source) / model.settings.component).glob("*.safetensors")
    n_bytes = sum(path.stat().st_size for path in paths if _WEIGHTS.fullmatch(path.name))
    return (3 if config.optimizer == "adamw" else 1) * n_bytes


def out_of_memory(config: TrainConfig) -> str:
    """The error for a run that ran out of memory, with three options that would use less."""
    half = max(1, config.train_batch_size // 2)
    options = []
    if config.train_batch_size > 1:
        more = config.gradient_accumulation_steps * config.train_batch_size // half
        options.append(f"--train-batch-size {half} --gradient-accumulation-steps {more}")
    if not config.gradient_checkpointing:
        options.append("--gradient-checkpointing")
    if not config.lora_rank:
        options.append("--lora-rank 16")
    if config.mixed_precision == "no":
        options.append("--mixed-precision bf16")
    if config.lora_rank and config.quantize != "nf4":
        options.append("--quantize nf4" if config.quantize == "int8" else "--quantize int8")
    options += ["--optimizer adafactor", "a smaller --resolution"]
    return f"memory ran out; checkpoints are kept; try {', or '.join(options[:3])}; --dry-run estimates what each saves"
