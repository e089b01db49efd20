"""What a run needs of disk and memory, and what to say where it is not there."""

import re
from pathlib import Path

from ..models.resolve import Model
from .config import TrainConfig

_WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")  # no variant such as .fp16


def checkpoint_bytes(config: TrainConfig, model: Model) -> int:
    """What a checkpoint takes at least, before anything is loaded; 0 where it is not known.

    All weights are in it twice, for going on and for loading; AdamW has two moments of each.
    """
    if config.lora_rank:
        return 0
    paths = Path(config.init_from or Path(model.root.source) / "unet").glob("*.safetensors")
    n_bytes = sum(path.stat().st_size for path in paths if _WEIGHTS.fullmatch(path.name))
    return (4 if config.optimizer == "adamw" else 2) * n_bytes


def levers(config: TrainConfig) -> str:
    """The line for a run whose memory ran out: three options that lower it."""
    half = max(1, config.train_batch_size // 2)
    found = []
    if config.train_batch_size > 1:
        more = config.gradient_accumulation_steps * config.train_batch_size // half
        found.append(f"--train-batch-size {half} --gradient-accumulation-steps {more}")
    if not config.gradient_checkpointing:
        found.append("--gradient-checkpointing")
    if not config.lora_rank:
        found.append("--lora-rank 16")
    if config.mixed_precision == "no":
        found.append("--mixed-precision bf16")
    found += ["--optimizer adafactor", "--resolution, smaller"]
    return f"memory ran out; checkpoints are kept; try {', or '.join(found[:3])}; --dry-run estimates what each saves"
