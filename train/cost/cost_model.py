"""Memory, disk space and time of a training run: passes are counted on meta tensors, the rest is arithmetic."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...models.cost.components import (
    TrainedComponent,
    count_parameters,
    frozen_vae,
    text_encoder,
    trained_component,
)
from ...models.cost.flop_counter import PassCost, ResultMemo, checkpointing_function, count_pass
from ...models.cost.speed import AUTOCAST_DTYPES, DeviceSpeed
from ...models.families import Family
from ...models.quantized import quantized_bytes
from ..config import VaeDtype
from ..placement import rounded_numel

Optimizer = Literal["adamw", "adafactor", "adamw8bit"]
Phase = Literal["caching", "forward and backward", "optimizer step"]

FLOAT_BYTES = 4
HALF_BYTES = 2
OVERHEAD_BYTES = 2**30
"""Allowance for the CUDA context, cuBLAS and cuDNN workspaces and fragmentation; not measured."""
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_RESULTS: ResultMemo = {}
"""Of operations on meta tensors, which depend on shapes alone: those of one model serve the next."""


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    n_pairs: int
    """Training pairs."""
    n_images: int
    """Distinct images."""
    n_prompts: int
    """Distinct prompts."""
    n_latents: float | None = None
    """Images and mirror images that the run draws, each encoded once, expected; all if not given."""

    def encoded(self, flip: bool) -> float:
        """Images and mirror images that are encoded."""
        return self.n_images * (2 if flip else 1) if self.n_latents is None else self.n_latents


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
    lora_targets: tuple[str, ...] | None
    """Endings of the names of the layers that the LoRA is put on."""
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
    separate_reference: bool = False
    """Whether the reference is another model than the one that training starts from."""
    vae_dtype: VaeDtype = "float32"
    validation_pairs: int = 0
    """Pairs that all validation passes denoise, at one timestep each."""
    auto_checkpointing: bool = False
    """Whether gradient_checkpointing is what auto chose for one device."""
    quantize: Literal["no", "int8", "nf4"] = "no"
    """What the weights of linear layers are in that a LoRA leaves as they are."""


def cache_bytes(family: Family, data: DatasetSize, settings: CostSettings) -> dict[str, int]:
    """On disk. Of prompts whose number of tokens differs, an upper bound: each counts as one of greatest length."""
    latent_size = family.latent_channels * (settings.resolution // family.vae_factor) ** 2
    return {
        "latents": round(data.encoded(settings.flip)) * 2 * latent_size * HALF_BYTES,  # mean and standard deviation
        "prompt embeddings": (data.n_prompts + 1) * prompt_bytes(family),  # and the empty prompt
    }


def prompt_bytes(family: Family) -> int:
    """Size of one prompt's embeddings in the cache, at most."""
    return HALF_BYTES * sum(map(math.prod, family.prompt_shapes().values()))


class CostModel:
    """Memory and time under any settings. Models and counted passes are kept for the next settings."""

    def __init__(self, family: Family, data: DatasetSize, speed: DeviceSpeed) -> None:
        """
        Args:
            family: with checked settings, those of text encoders too.
        """
        self.family = family
        self.data = data
        self.speed = speed
        self._components: dict[tuple, TrainedComponent] = {}
        self._passes: dict[tuple, PassCost] = {}
        self._vae = frozen_vae(family)
        self._vae_parameters = count_parameters(self._vae)
        encoders = [text_encoder(family.settings, part) for part in family.text_encoders]
        self._text_parameters = sum(map(count_parameters, encoders))
        self._flops_per_prompt = sum(2 * count_parameters(encoder) * _n_tokens(family, encoder) for encoder in encoders)
        # as train's load_text_encoders keeps them
        self._text_in_half = family.dtype == "bfloat16" and speed.device.startswith("cuda")

    def memory(self, settings: CostSettings) -> dict[Phase, dict[str, int]]:
        weights = list(self.component(settings).model.parameters())
        trainable = [weight.shape for weight in weights if weight.requires_grad]
        n_weights, n_trainable = sum(weight.numel() for weight in weights), sum(map(math.prod, trainable))
        frozen_bytes, dequantized = self._frozen_bytes(settings, n_weights - n_trainable)
        persistent = {
            "weights": FLOAT_BYTES * n_trainable + frozen_bytes,
            # with several processes, DDP's gradient buckets are as large again
            "gradients": FLOAT_BYTES * n_trainable * (1 if settings.n_processes == 1 else 2),
            "optimizer": sum(optimizer_bytes(settings.optimizer, shape) for shape in trainable),
            "overhead": OVERHEAD_BYTES,
        }
        if settings.has_reference and settings.lora_rank == 0 and not settings.reference_draws:
            model = self.component(settings).model
            n_rounded = 0 if AUTOCAST_DTYPES[settings.mixed_precision] is None else rounded_numel(model)
            persistent["reference"] = FLOAT_BYTES * n_weights - (FLOAT_BYTES - HALF_BYTES) * n_rounded
        elif settings.separate_reference:  # beside a LoRA it is in the frozen weights' precision
            persistent["reference"] = frozen_bytes
        if settings.ema:
            persistent["EMA"] = FLOAT_BYTES * n_trainable
        update = max(map(math.prod, trainable))  # one weight after the other
        if settings.optimizer == "adamw" and self.speed.device.startswith("cuda"):  # all at once; see optimizers.py
            update = n_trainable if settings.mixed_precision == "fp16" else 0
        # prompts are encoded before the model is loaded, most images between its steps, when it has no gradients
        images = {name: size for name, size in persistent.items() if name != "gradients"} | {
            "encoders": (FLOAT_BYTES if settings.vae_dtype == "float32" else HALF_BYTES) * self._vae_parameters,
            "activations": self._encoding_pass(settings).peak_bytes,
        }
        prompts = {"encoders": (HALF_BYTES if self._text_in_half else FLOAT_BYTES) * self._text_parameters}
        return {
            "caching": max(images, prompts, key=lambda parts: sum(parts.values())) | {"overhead": OVERHEAD_BYTES},
            "forward and backward": persistent
            | {"activations": self.training_pass(settings).peak_bytes}
            | ({"dequantized layer": dequantized} if dequantized else {}),
            "optimizer step": persistent | ({"temporary": FLOAT_BYTES * update} if update else {}),
        }

    def _frozen_bytes(self, settings: CostSettings, n_frozen: int) -> tuple[int, int]:
        """Of the weights that a LoRA leaves as they are, in half precision if mixed precision is on; and of the largest layer that
        is dequantized for a product, 0 without quantization."""
        each = FLOAT_BYTES if AUTOCAST_DTYPES[settings.mixed_precision] is None else HALF_BYTES
        if settings.quantize == "no":
            return each * n_frozen, 0
        sizes = self.component(settings).quantizable
        quantized = sum(quantized_bytes(settings.quantize, n) for n in sizes)
        return quantized + each * (n_frozen - sum(sizes)), each * max(sizes, default=0)

    def seconds(self, settings: CostSettings) -> dict[str, float]:
        n_pairs_seen = settings.max_train_steps * settings.gradient_accumulation_steps * settings.train_batch_size
        step, encoding = self.training_pass(settings), self._encoding_pass(settings)
        n_reference_pairs = n_pairs_seen if settings.has_reference else 0
        if settings.reference_draws:
            n_reference_pairs = min(n_reference_pairs, math.ceil(self.data.n_pairs / settings.n_processes))
        images = encoding.forward_flops / settings.encode_batch * self.data.encoded(settings.flip)
        prompts = self._flops_per_prompt * (self.data.n_prompts + 1)
        return {
            "caching": self._seconds(images, _PRECISIONS[settings.vae_dtype])
            + self._seconds(prompts, "bf16" if self._text_in_half else "no"),
            "reference": self._seconds(
                step.forward_flops / settings.train_batch_size * n_reference_pairs, settings.mixed_precision
            ),
            "training": self._seconds(
                (step.forward_flops + step.backward_flops) / settings.train_batch_size * n_pairs_seen,
                settings.mixed_precision,
            ),
            "validation": self._seconds(
                2
                * step.forward_flops
                / (settings.train_batch_size * settings.images_per_pair)
                * settings.validation_pairs,
                settings.mixed_precision,
            ),
        }

    def training_pass(self, settings: CostSettings) -> PassCost:
        """Forward and backward pass of one batch of pairs."""
        n_images, resolution = settings.train_batch_size * settings.images_per_pair, settings.resolution
        component, autocast_dtype = self.component(settings), AUTOCAST_DTYPES[settings.mixed_precision]
        key = (id(component), settings.gradient_checkpointing, autocast_dtype, n_images, resolution)
        if key not in self._passes:
            model, family = component.model, self.family
            if settings.gradient_checkpointing:
                model.enable_gradient_checkpointing(checkpointing_function(autocast_dtype))
            else:
                model.disable_gradient_checkpointing()
            side = resolution // family.vae_factor
            noisy, timesteps = _meta(n_images, family.latent_channels, side, side), _meta(n_images)
            prompts = {name: _meta(n_images, *shape) for name, shape in family.prompt_shapes().items()}
            # families read the crops' coordinates
            conditions = family.conditions(prompts, torch.zeros(n_images, 4), (resolution, resolution))
            conditions = {name: tensor.to("meta") for name, tensor in conditions.items()}
            self._passes[key] = count_pass(
                model, lambda: family.predict(model, noisy, timesteps, conditions), autocast_dtype, _RESULTS
            )
        return self._passes[key]

    def component(self, settings: CostSettings) -> TrainedComponent:
        """The U-Net or transformer with the weights that these settings train."""
        lora = settings.lora_rank > 0
        frozen_dtype = (AUTOCAST_DTYPES[settings.mixed_precision] if lora else None) or torch.float32
        key = (settings.lora_rank, settings.lora_targets if lora else (), frozen_dtype)
        if key not in self._components:
            self._components[key] = trained_component(self.family, *key)
        return self._components[key]

    def _encoding_pass(self, settings: CostSettings) -> PassCost:
        key = ("encoding", settings.encode_batch, settings.resolution, settings.vae_dtype)
        if key not in self._passes:
            pixels = _meta(settings.encode_batch, 3, settings.resolution, settings.resolution)
            vae = self._vae
            if settings.vae_dtype != "float32":
                vae = nn.Module.to(copy.deepcopy(vae), getattr(torch, settings.vae_dtype))  # its own warns
            self._passes[key] = count_pass(vae, lambda: self.family.latents(vae, pixels)[0], None, _RESULTS)
        return self._passes[key]

    def _seconds(self, flops: float, precision: str) -> float:
        return self.speed.seconds(flops, precision)


def _n_tokens(family: Family, encoder: Any) -> int:
    """Tokens of a prompt that a text encoder reads, at most."""
    longest = max(shape[0] for shape in family.prompt_shapes().values() if len(shape) > 1)
    own = getattr(encoder.config.get_text_config(), "max_position_embeddings", longest)
    return min(longest, own, family.call_settings.get("max_sequence_length") or longest)


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
