"""Settings of `train`."""

import hashlib
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..core.device import DEVICES
from ..core.errors import UsageError
from ..core.ids import canonical
from ..models.density import DENSITIES
from .checks import MAX_LEARNING_RATE, check_choice, check_range, refuse_contradictions
from .methods import METHODS, Method

Optimizer = Literal["auto", "adamw", "adafactor", "adamw8bit"]
MixedPrecision = Literal["no", "fp16", "bf16"]
VaeDtype = Literal["float32", "bfloat16", "float16"]
Quantize = Literal["no", "int8", "nf4"]
Format = Literal["auto", "pipeline", "unet", "transformer", "lora", "kohya"]
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
TRACKERS = ("tensorboard", "wandb", "trackio")
MAX_LORA_RANK = 4096
"""No attention projection of a known model is wider."""
MAX_RESOLUTION = 16384
MAX_SHIFT = 100
MAX_TIMESTEP = 1000
NEEDED = (
    "learning_rate",
    "lora_rank",
    "train_batch_size",
    "gradient_accumulation_steps",
    "max_train_steps",
    "lr_warmup_steps",
    "mixed_precision",
)
"""Settings that no model but the built-in ones has a default for, beside beta."""
KOHYA_FILE = "kohya.safetensors"
_TAKEN = ("pytorch_lora_weights", "adapter_model")
"""Names of the files that diffusers and peft read, without the extension."""
# settings that may differ when a run is resumed
_MAY_CHANGE = (
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
    "format",
    "kohya",
    "push_to_hub",
    "device",
    "cpu",
    "fsdp",
    "process_timeout",
)
_OFF = {
    "anchor": 0.0,
    "sft_weight": 0.0,
    "lora_targets": None,
    "quantize": "no",
    "timestep_density": None,
    "timestep_shift": None,
    "reference": None,
    "min_timestep": None,
    "max_timestep": None,
    "vae_dtype": "float32",
    "compile": False,
}
"""Options added later, with the value that disables each: with it a run is the one that began before the option existed."""


RENAMED = {
    "labels": "labelers",
    "choice_model": "labelers",
    "beta_dpo": "beta",
    "unet_init": "init_from",
    "cache_reference": "reference_draws",
    "output": "format",
}
"""Earlier names of settings, of version 0.1 and the Diffusion-DPO code, which options and files may still use."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Defaults suit the built-in world; `defaults.resolve_settings` completes settings by the recipe for any other model."""

    output_dir: str
    """Folder for the result and its checkpoints."""
    labelers: tuple[str, ...]
    """Labeler whose choices to train on; repeat for several. LABELER=WEIGHT multiplies the loss of its pairs by WEIGHT."""
    model: str = "shapes"
    """Model to tune, by default also the reference: shapes or shapes-flow (built in), a folder, or a hub id."""
    where: str | None = None
    """SQL condition on the view preferences, such as "margin > 0.1"."""
    loss: str = field(
        default="dpo",
        metadata={
            "help": "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()) + ".",
            "choices": tuple(METHODS),
        },
    )
    beta: float | None = None
    """Strength of the pull toward the reference; the recipe's for the model if not given, of built-in models the loss's own. It
    multiplies a mean over the latent's values, as
    in the Diffusion-DPO code (SD 1.5: 2000 to 5000); divided by their number it is the beta of a sum."""
    label_smoothing: float = 0.0
    """dpo only: probability that a label is wrong, the same for every pair."""
    soft_labels: bool = False
    """dpo only: use each label's stored probability."""
    safeguard: float | None = None
    """SDPO's mu, for pairwise losses: keeps the rejected image's gradient from raising the chosen image's error. Its paper uses
    0.9 for SD 1.5 and 0.6 for SDXL."""
    anchor: float = 0.0
    """Weight of the mean squared distance between the policy's and the reference's predictions, added to a pairwise loss with a
    reference; 0 disables this."""
    sft_weight: float = 0.0
    """Weight of the chosen image's error, added to a pairwise loss; 0 disables this."""
    min_snr_gamma: float | None = None
    """Weight each timestep's errors by min-SNR with this gamma; its paper uses 5."""
    timestep_density: str | None = None
    """Flow-matching models only: what the noise level sigma is drawn from, logit-normal or uniform; logit-normal if not given."""
    timestep_shift: str | None = None
    """Flow-matching models only: moves sigma toward noise; model, none or a number. model, also if not given, is the
    scheduler's own shift for Stable Diffusion 3 and SANA and none for the other families."""
    min_timestep: int | None = None
    """Train only on this timestep and later ones, of 1000: the noisier half decides what is shown and where, the other half how
    it looks."""
    max_timestep: int | None = None
    """Train only on this timestep and earlier ones, of 1000."""
    lora_rank: int = 16
    """Rank of the LoRA; 0 tunes every weight."""
    lora_alpha: float | None = None
    """Alpha of the LoRA; equal to the rank if not given."""
    lora_targets: tuple[str, ...] | None = None
    """Layers that the LoRA is put on, by the endings of their names; repeat for several. The model's attention, and in
    transformers its MLP, if not given."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    scale_lr: bool = False
    """Multiply the learning rate by the number of pairs per optimizer step."""
    lr_scheduler: str = "cosine"
    """Learning rate schedule: constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial."""
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
    """Decay rate of Adam's first moment."""
    adam_beta2: float = 0.999
    """Decay rate of Adam's second moment."""
    adam_weight_decay: float = 1e-2
    """Decoupled weight decay."""
    adam_epsilon: float = 1e-8
    """Added to Adam's denominator."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm; Adafactor clips by its own rule instead."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay, such as 0.999, and save it as the result."""
    max_train_samples: int | None = None
    """Train on at most this many pairs, sampled with the seed."""
    proportion_empty_prompts: float = 0.1
    """Fraction of pairs trained with an empty prompt."""
    resolution: int | None = None
    """Side length in pixels; the model's own if not given. Images are resized by their shorter side and cropped."""
    random_crop: bool = False
    """Crop each pair at a random position, both images alike, instead of at the center."""
    aspect_buckets: bool = False
    """Keep each pair's aspect ratio, to the nearest crop of the same area."""
    random_flip: bool = False
    """Mirror half of the pairs, both images alike. Off by default: it makes prompts that say "left" wrong."""
    noise_offset: float = 0.0
    """Strength of a per-channel offset added to the noise."""
    input_perturbation: float = 0.0
    """Standard deviation of extra noise on the input, the same for both images; the target does not change."""
    reference_draws: int = 0
    """Fixed noise draws per pair, whose reference errors are computed before the first step: training then needs no reference
    in memory, but noise repeats. 0 disables this."""
    dataloader_num_workers: int = 0
    """Threads that prepare batches ahead. They affect only speed: useful with a GPU, slower on a CPU."""
    seed: int = 0
    """Seed for the order of pairs, noise, timesteps, crops and initial LoRA weights."""
    validation_steps: int | None = None
    """Optimizer steps between validation passes; if not given, as many as make validation about 3 % of what the run computes."""
    early_stopping: int = 0
    """Stop when implicit accuracy on held-out pairs has not improved for this many validation passes; 0 disables this."""
    sample_steps: int = 0
    """Optimizer steps between sample images for held-out prompts; 0 disables them."""
    n_samples: int = 4
    """Number of sample images each time."""
    report_to: str | None = None
    """Log to tensorboard, wandb or trackio as well as to CSV files."""
    tracker_project_name: str = "prefloop"
    """Project name for the tracker."""
    format: Format = "auto"
    """What to write: pipeline, lora, kohya, or unet or transformer, the part that was trained. kohya is the LoRA, also as one file
    for ComfyUI and AUTOMATIC1111, named as the folder. auto writes the LoRA if one is trained, otherwise the pipeline. In
    pipeline, unet and transformer a trained LoRA is fused."""
    kohya: bool = False
    """Also write the LoRA in kohya's format, as kohya.safetensors."""
    push_to_hub: str | None = None
    """Hub repository to upload the result to."""
    mixed_precision: MixedPrecision = "no"
    """Precision of the forward and backward pass: no, fp16 or bf16."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute activations in the backward pass: saves memory, costs time. true, also without a value, false, or auto: only if
    the estimate of the run would not fit on the GPU."""
    compile: bool = False
    """Compile the model's repeated blocks with torch.compile. It takes minutes before the first step: for long runs on a GPU."""
    quantize: Quantize = "no"
    """int8 or nf4: keep the weights that a LoRA leaves as they are in 8 or 4 bits, which takes a half or a quarter of the memory
    of bf16, and time. The result is a LoRA for the model as it is. Needs bitsandbytes."""
    allow_tf32: bool = False
    """Use TF32 for float32 products: faster on NVIDIA Ampere GPUs and later."""
    device: str | None = field(
        default=None, metadata={"help": "cuda, mps or cpu; the best available if not given.", "choices": DEVICES}
    )
    cpu: bool = field(default=False, metadata={"help": "Earlier form of --device cpu.", "hidden": True})
    fsdp: bool = False
    """With several processes and --lora-rank 0: split weights, gradients and optimizer moments over the processes, for models that
    do not fit on one GPU. A loss with a reference needs --reference-draws."""
    process_timeout: int = 10800
    """With several processes: seconds that one waits for the others before the run ends. The longest that one works alone is a
    validation pass with its sample images, or writing a checkpoint."""
    revision: str | None = None
    """Revision of a hub id."""
    vae: str | None = None
    """VAE to encode with instead of the model's own: a folder or a hub id."""
    vae_dtype: VaeDtype = "float32"
    """What the VAE encodes in: float32, bfloat16 or float16. The latents of each are cached separately. Some VAEs overflow in
    float16, such as SDXL's own."""
    init_from: str | None = None
    """What to start from, and to use as the reference: a LoRA in a .safetensors file, which is added to the model; or a U-Net or
    transformer instead of the model's own, a folder or a hub id."""
    reference: str | None = None
    """Frozen model of the same kind that the loss compares with, instead of the one that training starts from: shapes or
    shapes-flow, a folder, or a hub id."""
    checkpointing_steps: int = 100
    """Optimizer steps between checkpoints."""
    checkpoints_total_limit: int = 2
    """Number of checkpoints to keep."""

    def __post_init__(self) -> None:
        if not self.labelers:
            raise UsageError("name at least one labeler with --labeler; `prefloop store ls` lists them")
        _ = self.labeler_weights
        choices: dict[str, Collection[str]] = {
            "loss": METHODS,
            "mixed_precision": get_args(MixedPrecision),
            "quantize": get_args(Quantize),
            "optimizer": get_args(Optimizer),
            "format": get_args(Format),
            "lr_scheduler": LR_SCHEDULERS,
            "report_to": TRACKERS,
            "device": DEVICES,
            "vae_dtype": get_args(VaeDtype),
        }
        for name, allowed in choices.items():
            check_choice(name, getattr(self, name), allowed)
        for name in ("beta", "adam_epsilon", "max_grad_norm", "lora_alpha", "min_snr_gamma"):
            check_range(name, getattr(self, name), above=0)
        if self.gradient_checkpointing not in (True, False):
            check_choice("gradient_checkpointing", self.gradient_checkpointing, ("true", "false", "auto"))
        check_range("learning_rate", self.learning_rate, above=0, at_most=MAX_LEARNING_RATE)
        check_range("lora_rank", self.lora_rank, at_least=0, at_most=MAX_LORA_RANK)
        for name in ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps"):
            check_range(name, getattr(self, name), at_least=1, at_most=10**9)
        for name in ("checkpoints_total_limit", "validation_steps", "n_samples"):
            check_range(name, getattr(self, name), at_least=1, at_most=10**9)
        for name in ("lr_warmup_steps", "seed", "early_stopping", "sample_steps", "reference_draws"):
            check_range(name, getattr(self, name), at_least=0, at_most=2**62)
        check_range("max_train_samples", self.max_train_samples, at_least=1)
        check_range("process_timeout", self.process_timeout, at_least=1, at_most=10**7)
        check_range("dataloader_num_workers", self.dataloader_num_workers, at_least=0, at_most=64)
        for name in ("adam_weight_decay", "noise_offset", "input_perturbation", "anchor", "sft_weight"):
            check_range(name, getattr(self, name), at_least=0)
        for name in ("adam_beta1", "adam_beta2"):
            check_range(name, getattr(self, name), at_least=0, at_most=0.999999999)
        for name in ("proportion_empty_prompts", "safeguard", "ema_decay"):
            check_range(name, getattr(self, name), at_least=0, at_most=1)
        if self.timestep_density is not None:
            check_choice("timestep_density", self.timestep_density, DENSITIES)
        _ = self.sigma_shift
        for name in ("min_timestep", "max_timestep"):
            check_range(name, getattr(self, name), at_least=0, at_most=MAX_TIMESTEP)
        if (self.min_timestep or 0) >= (MAX_TIMESTEP if self.max_timestep is None else self.max_timestep):
            raise UsageError(f"min-timestep {self.min_timestep or 0} must be below max-timestep {self.max_timestep}")
        check_range("label_smoothing", self.label_smoothing, at_least=0, at_most=0.5)
        if self.resolution is not None and not (0 < self.resolution <= MAX_RESOLUTION and self.resolution % 8 == 0):
            raise UsageError(f"resolution must be a multiple of 8 from 8 to {MAX_RESOLUTION}, got {self.resolution}")
        if self.cpu and self.device not in (None, "cpu"):
            raise UsageError(f"--cpu is --device cpu, and the device is {self.device}; leave out one of them")
        refuse_contradictions(self)

    @property
    def labeler_weights(self) -> dict[str, float]:
        """Each labeler's name and the weight of its pairs."""
        weights: dict[str, float] = {}
        for labeler in self.labelers:
            name, equals, text = labeler.rpartition("=")
            try:
                weight = float(text) if equals else 1.0
            except ValueError:
                name, weight = labeler, 1.0
            if not equals:
                name = labeler
            if not 0 < weight < math.inf:
                raise UsageError(f"the weight of {name} must be a finite number above 0, got {text}")
            weights[name] = weight
        return weights

    @property
    def sigma_shift(self) -> float | None:
        """The number that timestep_shift stands for; None is the model's own."""
        if self.timestep_shift in (None, "model"):
            return None
        if self.timestep_shift == "none":
            return 1.0
        try:
            shift = float(self.timestep_shift)
        except ValueError:
            shift = math.nan
        if not 0 < shift <= MAX_SHIFT:
            raise UsageError(
                f"timestep-shift must be model, none or a number above 0 and at most {MAX_SHIFT}, got {self.timestep_shift}"
            )
        return shift

    @property
    def kohya_file(self) -> str | None:
        """The name of the LoRA's file in kohya's format; None if none is written."""
        if self.format == "kohya":  # a folder of LoRAs shows nothing but file names
            name = Path(self.output_dir).resolve().name
            return f"{name}.safetensors" if name not in ("", *_TAKEN) else KOHYA_FILE
        return KOHYA_FILE if self.kohya else None

    @property
    def method(self) -> Method:
        """The record of the loss."""
        return METHODS[self.loss]

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU was asked for."""
        return self.cpu or self.device == "cpu"

    @property
    def needs_reference(self) -> bool:
        return self.method.needs_reference

    @property
    def needs_distance(self) -> bool:
        """Whether the predictions of policy and reference are compared, not only their errors."""
        return bool(self.anchor) or self.method.needs_distance

    @property
    def resolved_beta(self) -> float | None:
        """The beta given, otherwise the loss's own; None if the loss has none."""
        return self.method.beta if self.beta is None else self.beta

    def resolved(self) -> dict[str, Any]:
        """Every setting by name, beta resolved: what results, tables and the run's identity record."""
        return asdict(self) | {"beta": self.resolved_beta}

    def identity(self) -> str:
        """Hash of the settings that affect training; resume requires one that `continues` accepts."""
        return self._hash(gradient_checkpointing=False)

    def continues(self, identity: object) -> bool:
        """Whether a run with this identity is resumed by these settings: with gradient checkpointing or without, which once was
        part of the identity."""
        return identity in (self.identity(), self._hash(gradient_checkpointing=True))

    def _hash(self, gradient_checkpointing: bool) -> str:
        settings = {
            name: value
            for name, value in (self.resolved() | {"gradient_checkpointing": gradient_checkpointing}).items()
            if name not in _MAY_CHANGE and not (name in _OFF and value == _OFF[name])
        }
        return hashlib.sha256(canonical(settings).encode()).hexdigest()
