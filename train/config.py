"""Settings of `train`."""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from ..store.errors import UsageError
from ..store.ids import canonical

Loss = Literal["dpo", "sft"]
MixedPrecision = Literal["no", "fp16", "bf16"]
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
TRACKERS = ("tensorboard", "wandb", "trackio")
# What may differ between a run and its continuation.
_FREE = (
    "output_dir",
    "max_train_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "validation_steps",
    "report_to",
    "cpu",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Defaults are for the built-in world. Stable Diffusion 1.5 wants a learning rate of 1e-5 (LoRA) or 1e-8 times the
    pairs in a step (full), and a beta_dpo of 2000 to 5000."""

    output_dir: str
    labels: tuple[str, ...]
    """Labelers whose choices are learned."""
    model: str = "shapes"
    """The model that is tuned, and its own reference: the built-in one, a folder, or a hub id."""
    where: str | None = None
    """SQL condition over the view `preferences`."""
    loss: Loss = "dpo"
    beta_dpo: float = 500.0
    """Multiplies a per-element mean of squared errors, as in the reference code; divided by the number of latent values
    it is the beta of a sum."""
    lora_rank: int = 16
    """0 tunes every weight of the U-Net."""
    lora_alpha: float | None = None
    """None is the rank."""
    learning_rate: float = 1.5e-3
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 10
    train_batch_size: int = 32
    """Pairs per device and forward pass."""
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 190
    """Optimizer steps."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False
    resolution: int | None = None
    """Side in pixels; None is the model's own. Images are scaled by their shorter side and cut in the middle."""
    random_flip: bool = False
    """Mirror half of the pairs, both images alike. Off by default: prompts that say "left" would become wrong."""
    proportion_empty_prompts: float = 0.1
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    """Standard deviation of what is added to the noise of the input, the same for both images; the target stays."""
    seed: int = 0
    checkpointing_steps: int = 100
    checkpoints_total_limit: int = 2
    validation_steps: int = 50
    report_to: str | None = None
    cpu: bool = False

    def __post_init__(self) -> None:
        if not self.labels:
            raise UsageError("name at least one labeler with --labels; `prefloop store ls` lists them")
        _choice("loss", self.loss, get_args(Loss))
        _choice("mixed-precision", self.mixed_precision, get_args(MixedPrecision))
        _choice("lr-scheduler", self.lr_scheduler, SCHEDULES)
        if self.report_to is not None:
            _choice("report-to", self.report_to, TRACKERS)
        for name in ("beta_dpo", "learning_rate", "adam_epsilon", "max_grad_norm"):
            _range(name, getattr(self, name), above=0)
        for name in ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps"):
            _range(name, getattr(self, name), least=1, most=10**9)
        for name in ("checkpoints_total_limit", "validation_steps"):
            _range(name, getattr(self, name), least=1, most=10**9)
        for name in ("lora_rank", "lr_warmup_steps", "seed"):
            _range(name, getattr(self, name), least=0, most=2**62)
        for name in ("adam_weight_decay", "noise_offset", "input_perturbation"):
            _range(name, getattr(self, name), least=0)
        for name in ("adam_beta1", "adam_beta2"):
            _range(name, getattr(self, name), least=0, most=0.999999999)
        _range("proportion_empty_prompts", self.proportion_empty_prompts, least=0, most=1)
        if self.lora_alpha is not None:
            _range("lora_alpha", self.lora_alpha, above=0)
        if self.resolution is not None and (self.resolution <= 0 or self.resolution % 8):
            raise UsageError(f"resolution must be a positive multiple of 8, got {self.resolution}")

    def identity(self) -> str:
        """Hash of everything that decides what step N is; a run is continued only by the same."""
        settings = {name: value for name, value in asdict(self).items() if name not in _FREE}
        return hashlib.sha256(canonical(settings).encode()).hexdigest()


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} knows no {value!r}; there are {', '.join(choices)}")


def _range(
    name: str, value: float, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> None:
    option = name.replace("_", "-")
    if not math.isfinite(value):
        raise UsageError(f"{option} must be a finite number, got {value}")
    if value <= above and above > -math.inf:
        raise UsageError(f"{option} must be above {above:g}, got {value:g}")
    if not least <= value <= most:
        limit = f"at least {least:g}" if value < least else f"at most {most:g}"
        raise UsageError(f"{option} must be {limit}, got {value:g}")
