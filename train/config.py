"""Settings of `train`."""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from ..core.errors import UsageError
from ..core.ids import canonical

Loss = Literal["dpo", "sft", "ipo", "hinge", "mapo", "kto"]
Optimizer = Literal["auto", "adamw", "adafactor", "adamw8bit"]
MixedPrecision = Literal["no", "fp16", "bf16"]
Output = Literal["auto", "pipeline", "unet", "lora"]
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
TRACKERS = ("tensorboard", "wandb", "trackio")
PAIRWISE = ("dpo", "ipo", "hinge", "mapo")
"""Losses of the difference between two errors, which the safeguard can hold."""
WITH_REFERENCE = ("dpo", "ipo", "hinge", "kto")
MOST_RATE = 1e4
MOST_RANK = 4096
"""No projection of attention that a LoRA is put on is wider in the models that are known."""
MOST_PIXELS = 16384
# What may differ between a run and its continuation.
_FREE = (
    "output_dir",
    "max_train_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "validation_steps",
    "sample_steps",
    "n_samples",
    "early_stopping",
    "dataloader_num_workers",
    "report_to",
    "tracker_project_name",
    "output",
    "kohya",
    "push_to_hub",
    "cpu",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Defaults are for the built-in world. `prefloop train --recipes` lists those for Stable Diffusion 1.5 and XL."""

    output_dir: str
    labels: tuple[str, ...]
    """Labelers whose choices are learned; NAME=WEIGHT multiplies the loss of a labeler's pairs."""
    model: str = "shapes"
    """The model that is tuned, and its own reference: the built-in one, a folder, or a hub id."""
    revision: str | None = None
    """Of a hub id."""
    vae: str | None = None
    """A VAE to encode with instead of the model's own: a folder or a hub id."""
    unet_init: str | None = None
    """A U-Net to begin from, and to be measured against, instead of the model's own: a folder or a hub id."""
    where: str | None = None
    """SQL condition over the view `preferences`."""
    max_train_samples: int | None = None
    """Only so many training pairs, drawn by the seed."""
    loss: Loss = "dpo"
    beta_dpo: float = 500.0
    """Multiplies a per-element mean of squared errors, as in the reference code; divided by the number of latent values
    it is the beta of a sum."""
    label_smoothing: float = 0.0
    """Of dpo: every label is taken to be right with probability 1 minus this."""
    soft_labels: bool = False
    """Of dpo: every label is taken to be right with its stored probability."""
    safeguard: float | None = None
    """SDPO's mu for pairwise losses: 0.9 for SD 1.5, 0.6 for SDXL in its paper. None is without."""
    min_snr_gamma: float | None = None
    """Weights each timestep's errors by min-SNR; 5 in its paper. None is without."""
    lora_rank: int = 16
    """0 tunes every weight of the U-Net."""
    lora_alpha: float | None = None
    """None is the rank."""
    learning_rate: float = 1e-3
    scale_lr: bool = False
    """Multiply the learning rate by the pairs of an optimizer step."""
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 10
    optimizer: Optimizer = "auto"
    """auto is Adafactor for full fine-tuning of SDXL and AdamW for the rest."""
    train_batch_size: int = 32
    """Pairs per device and forward pass."""
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 240
    """Optimizer steps."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """Adafactor clips by its own rule, and only by that."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, which becomes the result. None is without."""
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False
    allow_tf32: bool = False
    resolution: int | None = None
    """Side in pixels; None is the model's own. Images are scaled by their shorter side and cut."""
    random_crop: bool = False
    """Cut each pair at a random place, both images alike, instead of in the middle."""
    aspect_buckets: bool = False
    """Keep each pair's aspect ratio, as near as frames of the same area allow."""
    random_flip: bool = False
    """Mirror half of the pairs, both images alike. Off by default: prompts that say "left" would become wrong."""
    proportion_empty_prompts: float = 0.1
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    """Standard deviation of what is added to the noise of the input, the same for both images; the target stays."""
    cache_reference: int = 0
    """Draw timestep, noise and mirroring only so often for each pair, and compute the reference's errors of these draws once,
    before the first step: no reference in memory, none computed again, but the same noise returns. 0 is without."""
    dataloader_num_workers: int = 0
    """Threads that prepare batches ahead. They change nothing but the time: worth it beside a GPU, in the way on a CPU."""
    seed: int = 0
    checkpointing_steps: int = 100
    checkpoints_total_limit: int = 2
    validation_steps: int = 50
    early_stopping: int = 0
    """End when the held-out implicit accuracy was not better for so many looks. 0 is never."""
    sample_steps: int = 0
    """Draw pictures for a few held-out prompts every so many steps, beside the reference's. 0 is never."""
    n_samples: int = 4
    report_to: str | None = None
    tracker_project_name: str = "prefloop"
    output: Output = "auto"
    """What is written: the whole pipeline, the U-Net alone, or the LoRA. auto is lora where one is trained, else pipeline; in a
    pipeline or a U-Net a LoRA is fused."""
    kohya: bool = False
    """Write the LoRA in kohya's layout too."""
    push_to_hub: str | None = None
    """Repository to upload the result to."""
    cpu: bool = False

    def __post_init__(self) -> None:
        if not self.labels:
            raise UsageError("name at least one labeler with --labels; `prefloop store ls` lists them")
        _ = self.labelers
        _choice("loss", self.loss, get_args(Loss))
        _choice("mixed-precision", self.mixed_precision, get_args(MixedPrecision))
        _choice("optimizer", self.optimizer, get_args(Optimizer))
        _choice("output", self.output, get_args(Output))
        _choice("lr-scheduler", self.lr_scheduler, SCHEDULES)
        if self.report_to is not None:
            _choice("report-to", self.report_to, TRACKERS)
        for name in ("beta_dpo", "adam_epsilon", "max_grad_norm"):
            _range(name, getattr(self, name), above=0)
        _range("learning_rate", self.learning_rate, above=0, most=MOST_RATE)
        _range("lora_rank", self.lora_rank, least=0, most=MOST_RANK)
        for name in ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps"):
            _range(name, getattr(self, name), least=1, most=10**9)
        for name in ("checkpoints_total_limit", "validation_steps", "n_samples"):
            _range(name, getattr(self, name), least=1, most=10**9)
        for name in ("lr_warmup_steps", "seed", "early_stopping", "sample_steps", "cache_reference"):
            _range(name, getattr(self, name), least=0, most=2**62)
        _range("dataloader_num_workers", self.dataloader_num_workers, least=0, most=64)
        for name in ("adam_weight_decay", "noise_offset", "input_perturbation"):
            _range(name, getattr(self, name), least=0)
        for name in ("adam_beta1", "adam_beta2"):
            _range(name, getattr(self, name), least=0, most=0.999999999)
        _range("proportion_empty_prompts", self.proportion_empty_prompts, least=0, most=1)
        _range("label_smoothing", self.label_smoothing, least=0, most=0.5)
        for name in ("lora_alpha", "min_snr_gamma"):
            if getattr(self, name) is not None:
                _range(name, getattr(self, name), above=0)
        for name in ("safeguard", "ema_decay"):
            if getattr(self, name) is not None:
                _range(name, getattr(self, name), least=0, most=1)
        if self.max_train_samples is not None:
            _range("max_train_samples", self.max_train_samples, least=1)
        if self.resolution is not None and not (0 < self.resolution <= MOST_PIXELS and self.resolution % 8 == 0):
            raise UsageError(f"resolution must be a multiple of 8 from 8 to {MOST_PIXELS}, got {self.resolution}")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        rate = self.learning_rate
        if self.scale_lr:
            rate *= self.train_batch_size * self.gradient_accumulation_steps
            if rate > MOST_RATE:
                raise UsageError(
                    f"learning-rate {self.learning_rate:g} times the pairs of a step is {rate:g}; lower it"
                )
        if rate * self.adam_weight_decay >= 1:
            raise UsageError(
                f"adam-weight-decay {self.adam_weight_decay:g} at learning-rate {rate:g} takes all of a weight in one step; lower it"
            )
        if self.safeguard is not None and self.loss not in PAIRWISE:
            raise UsageError(f"safeguard holds pairwise losses ({', '.join(PAIRWISE)}); {self.loss} is none")
        if self.loss != "dpo" and (self.soft_labels or self.label_smoothing):
            raise UsageError(f"soft-labels and label-smoothing are for the loss dpo, not {self.loss}")
        if self.soft_labels and self.label_smoothing:
            raise UsageError("give soft-labels or label-smoothing, not both")
        if self.cache_reference and not self.needs_reference:
            raise UsageError(f"the loss {self.loss} has no reference that cache-reference could keep")
        if self.cache_reference and self.min_snr_gamma is not None:
            raise UsageError("cache-reference and min-snr-gamma do not go together; leave one out")
        if self.output == "lora" and not self.lora_rank:
            raise UsageError("output lora wants a --lora-rank above 0")
        if self.kohya and not self.lora_rank:
            raise UsageError("kohya is a layout of LoRAs; give a --lora-rank above 0")
        if self.push_to_hub is not None:
            from .export.hub import refuse_bad_name  # the hub's client takes a while to import

            refuse_bad_name(self.push_to_hub)

    @property
    def labelers(self) -> dict[str, float]:
        """Each labeler's name and the weight of its pairs."""
        found: dict[str, float] = {}
        for label in self.labels:
            name, equals, weight = label.rpartition("=")
            try:
                value = float(weight) if equals else 1.0
            except ValueError:
                name, value = label, 1.0
            if not equals:
                name = label
            if not 0 < value < math.inf:
                raise UsageError(f"the weight of {name} must be a finite number above 0, got {weight}")
            found[name] = value
        return found

    @property
    def needs_reference(self) -> bool:
        return self.loss in WITH_REFERENCE

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
