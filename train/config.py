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


RENAMED = {"labels": "labelers", "beta_dpo": "beta", "unet_init": "init_from", "cache_reference": "reference_draws"}
"""Names of settings in version 0.1 and in the reference code, which options and files may still use."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Defaults are for the built-in world. `prefloop train --recipes` lists those for Stable Diffusion 1.5 and XL."""

    output_dir: str
    """Folder for the result and its checkpoints."""
    labelers: tuple[str, ...]
    """Labeler whose choices to train on, or LABELER=WEIGHT, which multiplies the loss of its pairs; repeat for several."""
    model: str = "shapes"
    """Model to tune, which is also its own reference: shapes (built in), a folder, or a hub id."""
    where: str | None = None
    """SQL condition over the view preferences, such as "margin > 0.1"."""
    loss: Loss = "dpo"
    """dpo, sft, ipo, hinge, mapo or kto."""
    beta: float = 500.0
    """Strength of the pull towards the reference. Multiplies a per-element mean of squared errors, as in the reference code
    (SD 1.5: 2000 to 5000); divided by the number of latent values it is the beta of a sum."""
    label_smoothing: float = 0.0
    """dpo only: probability that a label is wrong, the same for every pair."""
    soft_labels: bool = False
    """dpo only: use each label's stored probability."""
    safeguard: float | None = None
    """SDPO's mu: keep the rejected image's gradient from raising the chosen one's error. 0.9 for SD 1.5 and 0.6 for SDXL in
    its paper; pairwise losses only."""
    min_snr_gamma: float | None = None
    """Weight each timestep's errors by min-SNR; 5 in its paper."""
    lora_rank: int = 16
    """Rank of the LoRA; 0 tunes every weight."""
    lora_alpha: float | None = None
    """Alpha of the LoRA; the rank if not given."""
    learning_rate: float = 1e-3
    """Peak learning rate. The default suits the built-in world; use about 1e-5 for a LoRA of SD 1.5."""
    scale_lr: bool = False
    """Multiply the learning rate by the number of pairs per optimizer step."""
    lr_scheduler: str = "cosine"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial."""
    lr_warmup_steps: int = 10
    """Optimizer steps over which the learning rate rises to its peak."""
    optimizer: Optimizer = "auto"
    """adamw, adafactor or adamw8bit; auto is Adafactor for full fine-tuning of SDXL and AdamW otherwise."""
    max_train_steps: int = 240
    """Optimizer steps."""
    train_batch_size: int = 32
    """Pairs per device and forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    adam_beta1: float = 0.9
    """First moment's decay."""
    adam_beta2: float = 0.999
    """Second moment's decay."""
    adam_weight_decay: float = 1e-2
    """Decoupled weight decay."""
    adam_epsilon: float = 1e-8
    """Added to Adam's denominator."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down; Adafactor uses its own rule instead."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, such as 0.999, and make it the result."""
    max_train_samples: int | None = None
    """Train on at most this many pairs, chosen by the seed."""
    proportion_empty_prompts: float = 0.1
    """Fraction of pairs trained with an empty prompt."""
    resolution: int | None = None
    """Side in pixels; the model's own if not given. Images are resized by their shorter side and cropped."""
    random_crop: bool = False
    """Crop each pair at a random position, both images alike, instead of at the center."""
    aspect_buckets: bool = False
    """Keep each pair's aspect ratio, to the nearest crop of the same area."""
    random_flip: bool = False
    """Mirror half of the pairs, both images alike. Off by default, because it makes prompts that say "left" wrong."""
    noise_offset: float = 0.0
    """Strength of a per-channel offset added to the noise."""
    input_perturbation: float = 0.0
    """Standard deviation of extra noise in the input, the same for both images; the target does not change."""
    reference_draws: int = 0
    """Fixed noise draws per pair, whose reference errors are computed before the first step: no reference in memory, none
    computed again, but the same noise returns. 0 disables this."""
    dataloader_num_workers: int = 0
    """Threads that prepare batches ahead. They change only speed: useful beside a GPU, slower on a CPU."""
    seed: int = 0
    """Seed of order, noise, timesteps, crops and initial LoRA weights."""
    validation_steps: int = 50
    """Optimizer steps between validation passes."""
    early_stopping: int = 0
    """Stop when implicit accuracy on held-out pairs has not improved for this many validation passes; 0 disables this."""
    sample_steps: int = 0
    """Optimizer steps between sample images for held-out prompts; 0 disables them."""
    n_samples: int = 4
    """Sample images each time."""
    report_to: str | None = None
    """Log to tensorboard, wandb or trackio as well as to CSV files."""
    tracker_project_name: str = "prefloop"
    """Project name for the tracker."""
    output: Output = "auto"
    """What to write: pipeline, unet or lora. auto is lora if one is trained, otherwise pipeline; pipeline and unet have the
    LoRA fused."""
    kohya: bool = False
    """Also write the LoRA in kohya's format."""
    push_to_hub: str | None = None
    """Hub repository to upload the result to."""
    mixed_precision: MixedPrecision = "no"
    """no, fp16 or bf16."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    allow_tf32: bool = False
    """Faster float32 on NVIDIA Ampere GPUs and later."""
    cpu: bool = False
    """Train on the CPU even if there is a GPU."""
    revision: str | None = None
    """Revision of a hub id."""
    vae: str | None = None
    """VAE to encode with instead of the model's own: a folder or a hub id."""
    init_from: str | None = None
    """U-Net to start from instead of the model's own, also used as the reference: a folder or a hub id."""
    checkpointing_steps: int = 100
    """Optimizer steps between checkpoints."""
    checkpoints_total_limit: int = 2
    """Number of checkpoints to keep."""

    def __post_init__(self) -> None:
        if not self.labelers:
            raise UsageError("name at least one labeler with --labeler; `prefloop store ls` lists them")
        _ = self.labeler_weights
        _choice("loss", self.loss, get_args(Loss))
        _choice("mixed-precision", self.mixed_precision, get_args(MixedPrecision))
        _choice("optimizer", self.optimizer, get_args(Optimizer))
        _choice("output", self.output, get_args(Output))
        _choice("lr-scheduler", self.lr_scheduler, SCHEDULES)
        if self.report_to is not None:
            _choice("report-to", self.report_to, TRACKERS)
        for name in ("beta", "adam_epsilon", "max_grad_norm"):
            _range(name, getattr(self, name), above=0)
        _range("learning_rate", self.learning_rate, above=0, most=MOST_RATE)
        _range("lora_rank", self.lora_rank, least=0, most=MOST_RANK)
        for name in ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps"):
            _range(name, getattr(self, name), least=1, most=10**9)
        for name in ("checkpoints_total_limit", "validation_steps", "n_samples"):
            _range(name, getattr(self, name), least=1, most=10**9)
        for name in ("lr_warmup_steps", "seed", "early_stopping", "sample_steps", "reference_draws"):
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
        if self.reference_draws and not self.needs_reference:
            raise UsageError(f"the loss {self.loss} has no reference that reference-draws could keep")
        if self.reference_draws and self.min_snr_gamma is not None:
            raise UsageError("reference-draws and min-snr-gamma do not go together; leave one out")
        if self.output == "lora" and not self.lora_rank:
            raise UsageError("output lora wants a --lora-rank above 0")
        if self.kohya and not self.lora_rank:
            raise UsageError("kohya is a layout of LoRAs; give a --lora-rank above 0")
        if self.push_to_hub is not None:
            from .export.hub import refuse_bad_name  # the hub's client takes a while to import

            refuse_bad_name(self.push_to_hub)

    @property
    def labeler_weights(self) -> dict[str, float]:
        """Each labeler's name and the weight of its pairs."""
        found: dict[str, float] = {}
        for label in self.labelers:
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
