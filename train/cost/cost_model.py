"""Memory, disk space and time of a training run: passes are counted on meta tensors, the rest is arithmetic."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from peft import LoraConfig
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ...models.families.checks import component_from
from ...models.families.unet import LORA_TARGETS, MODEL_CLASS
from .flop_counter import PassCost, ResultMemo, checkpointing_function, count_pass

Optimizer = Literal["adamw", "adafactor", "adamw8bit"]
Phase = Literal["caching", "forward and backward", "optimizer step"]

FLOAT_BYTES = 4
HALF_BYTES = 2
OVERHEAD_BYTES = 2**30
"""Allowance for the CUDA context, cuBLAS and cuDNN workspaces and fragmentation; not measured."""
AUTOCAST_DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PipelineConfigs:
    """The config.json of each part of a pipeline."""

    unet: dict
    vae: dict
    text_encoders: tuple[dict, ...]

    @property
    def factor(self) -> int:
        """Pixels per latent value along one side."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    @property
    def tokens(self) -> int:
        return self.text_encoders[0]["max_position_embeddings"]

    @property
    def pooled_width(self) -> int:
        """Size of the pooled prompt embedding; 0 except for SDXL."""
        return self.text_encoders[-1]["projection_dim"] if self.unet.get("addition_embed_type") == "text_time" else 0


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    n_pairs: int
    """Training pairs."""
    n_images: int
    """Distinct images; each is encoded once."""
    n_prompts: int
    """Distinct prompts."""


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    resolution: int
    """Side in pixels."""
    train_batch_size: int
    """Pairs per device and forward pass."""
    gradient_accumulation_steps: int
    max_train_steps: int
    n_processes: int
    lora_rank: int
    """0 trains every weight."""
    mixed_precision: Literal["no", "fp16", "bf16"]
    gradient_checkpointing: bool
    optimizer: Optimizer
    images_per_pair: int
    """Images of a pair that the loss uses: 1 or 2."""
    has_reference: bool
    """Whether the loss uses a frozen reference model."""
    reference_draws: bool
    """Whether the reference model's errors are precomputed."""
    ema: bool
    flip: bool
    encode_batch: int
    """Images the VAE encodes at once."""


@dataclass(frozen=True)
class DeviceSpeed:
    device: str
    flops_per_second: dict[str, float]
    """Rate of a matrix product, by mixed_precision."""
    utilization: float
    """Fraction of that rate that training reaches."""


def cache_bytes(pipeline: PipelineConfigs, data: DatasetSize, settings: CostSettings) -> dict[str, int]:
    latent_size = pipeline.vae["latent_channels"] * (settings.resolution // pipeline.factor) ** 2
    prompt_size = pipeline.tokens * pipeline.unet["cross_attention_dim"] + pipeline.pooled_width
    n_latents = data.n_images * (2 if settings.flip else 1)
    return {
        "latents": n_latents * 2 * latent_size * HALF_BYTES,  # mean and standard deviation
        "prompt embeddings": (data.n_prompts + 1) * prompt_size * HALF_BYTES,  # and the empty prompt
    }


class CostModel:
    """Memory and time under any settings. Models and counted passes are kept for the next settings."""

    def __init__(self, pipeline: PipelineConfigs, data: DatasetSize, speed: DeviceSpeed) -> None:
        self.pipeline = pipeline
        self.data = data
        self.speed = speed
        self._memo: ResultMemo = {}
        self._unets: dict[int, Any] = {}
        self._passes: dict[tuple, PassCost] = {}
        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(pipeline.vae)
            texts = [CLIPTextModel(CLIPTextConfig(**config)) for config in pipeline.text_encoders]
        self._vae = vae.requires_grad_(False)
        self._vae_parameters = _n_parameters(vae)
        self._text_parameters = sum(_n_parameters(text) for text in texts)

    def memory(self, settings: CostSettings) -> dict[Phase, dict[str, int]]:
        weights = list(self._unet(settings.lora_rank).parameters())
        trainable = [weight.shape for weight in weights if weight.requires_grad]
        n_weights, n_trainable = sum(weight.numel() for weight in weights), sum(map(math.prod, trainable))
        frozen_bytes = FLOAT_BYTES if AUTOCAST_DTYPES[settings.mixed_precision] is None else HALF_BYTES
        persistent = {
            # a LoRA's frozen weights are in half precision if mixed precision is on
            "weights": FLOAT_BYTES * n_trainable + frozen_bytes * (n_weights - n_trainable),
            # with several processes, DDP's gradient buckets are as large again
            "gradients": FLOAT_BYTES * n_trainable * (1 if settings.n_processes == 1 else 2),
            "optimizer": sum(optimizer_bytes(settings.optimizer, shape) for shape in trainable),
            "overhead": OVERHEAD_BYTES,
        }
        if settings.has_reference and settings.lora_rank == 0 and not settings.reference_draws:
            persistent["reference"] = FLOAT_BYTES * n_weights
        if settings.ema:
            persistent["EMA"] = FLOAT_BYTES * n_trainable
        # AdamW updates all weights at once on a GPU; on a CPU, and with the other optimizers, one after the other
        at_once = settings.optimizer == "adamw" and self.speed.device.startswith("cuda")
        update = n_trainable if at_once else max(map(math.prod, trainable))
        return {
            "caching": {
                "encoders": FLOAT_BYTES * (self._vae_parameters + self._text_parameters),
                "activations": self._encoding_pass(settings).peak_bytes,
                "overhead": OVERHEAD_BYTES,
            },
            "forward and backward": persistent | {"activations": self.training_pass(settings).peak_bytes},
            "optimizer step": persistent | {"temporary": FLOAT_BYTES * update},
        }

    def seconds(self, settings: CostSettings) -> dict[str, float]:
        n_pairs_seen = settings.max_train_steps * settings.gradient_accumulation_steps * settings.train_batch_size
        step, encoding = self.training_pass(settings), self._encoding_pass(settings)
        n_encoded = self.data.n_images * (2 if settings.flip else 1)
        n_reference_pairs = n_pairs_seen if settings.has_reference else 0
        if settings.reference_draws:
            n_reference_pairs = min(n_reference_pairs, math.ceil(self.data.n_pairs / settings.n_processes))
        caching = encoding.forward_flops / settings.encode_batch * n_encoded
        caching += 2 * self._text_parameters * self.pipeline.tokens * (self.data.n_prompts + 1)
        return {
            "caching": self._seconds(caching, "no"),
            "reference": self._seconds(
                step.forward_flops / settings.train_batch_size * n_reference_pairs, settings.mixed_precision
            ),
            "training": self._seconds(
                (step.forward_flops + step.backward_flops) / settings.train_batch_size * n_pairs_seen,
                settings.mixed_precision,
            ),
        }

    def training_pass(self, settings: CostSettings) -> PassCost:
        """Forward and backward pass of one batch of pairs."""
        config, n_images = self.pipeline.unet, settings.train_batch_size * settings.images_per_pair
        key = (settings.lora_rank, settings.gradient_checkpointing, settings.mixed_precision, n_images)
        if key not in self._passes:
            unet, autocast_dtype = self._unet(settings.lora_rank), AUTOCAST_DTYPES[settings.mixed_precision]
            if settings.gradient_checkpointing:
                unet.enable_gradient_checkpointing(checkpointing_function(autocast_dtype))
            else:
                unet.disable_gradient_checkpointing()
            side = settings.resolution // self.pipeline.factor
            inputs = [
                _meta(n_images, config["in_channels"], side, side),
                _meta(n_images),
                _meta(n_images, self.pipeline.tokens, config["cross_attention_dim"]),
            ]
            added = None
            if pooled := self.pipeline.pooled_width:
                n_ids = (config["projection_class_embeddings_input_dim"] - pooled) // config["addition_time_embed_dim"]
                added = {"text_embeds": _meta(n_images, pooled), "time_ids": _meta(n_images, n_ids)}
            self._passes[key] = count_pass(
                unet, lambda: unet(*inputs, added_cond_kwargs=added).sample, autocast_dtype, self._memo
            )
        return self._passes[key]

    def _encoding_pass(self, settings: CostSettings) -> PassCost:
        key = ("encoding", settings.encode_batch, settings.resolution)
        if key not in self._passes:
            pixels = _meta(settings.encode_batch, 3, settings.resolution, settings.resolution)
            self._passes[key] = count_pass(
                self._vae, lambda: self._vae.encode(pixels).latent_dist.mean, None, self._memo
            )
        return self._passes[key]

    def _unet(self, lora_rank: int) -> Any:
        if lora_rank not in self._unets:
            with torch.device("meta"):
                unet: Any = component_from(MODEL_CLASS, self.pipeline.unet)
                if lora_rank:
                    unet.requires_grad_(False)
                    unet.add_adapter(LoraConfig(r=lora_rank, target_modules=list(LORA_TARGETS)))
            self._unets[lora_rank] = unet.train()
        return self._unets[lora_rank]

    def _seconds(self, flops: float, precision: str) -> float:
        return flops / (self.speed.flops_per_second[precision] * self.speed.utilization)


def _n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def optimizer_bytes(optimizer: Optimizer, shape: tuple[int, ...]) -> int:
    """Bytes of optimizer state for a weight of this shape."""
    n = math.prod(shape)
    if optimizer == "adafactor" and len(shape) > 1:
        return FLOAT_BYTES * (n // shape[-1] + n // shape[-2])  # a mean for each row and each column
    if optimizer == "adafactor":
        return FLOAT_BYTES * n
    if optimizer == "adamw8bit" and n >= 4096:  # bitsandbytes leaves small weights in float32
        return 2 * (n + FLOAT_BYTES * math.ceil(n / 256))  # and a scale for each block of 256
    return 2 * FLOAT_BYTES * n
