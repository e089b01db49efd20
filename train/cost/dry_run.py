"""`prefloop train --dry-run`: print the resolved settings and an estimate of memory, disk and time."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import torch

from ...core.json import plain
from ...core.text import plural
from ...models.cost.components import with_text_defaults
from ...models.cost.speed import measured_speed
from ...models.families import Family, family_of
from ...models.noise import RectifiedFlow
from ...models.parts import with_parts
from ...models.resolve import find_model
from ...store import PairStore
from ..cache import encode_batch
from ..config import TrainConfig
from ..data import noise_of
from ..export.result import output_of
from ..layer_checks import refuse_unfit
from ..monitor.validation_plan import plan_validation
from ..optimizers import learning_rate, optimizer_name
from ..pairs import Pairs, select_pairs
from ..preflight import refuse_impossible, refuse_unsuitable
from .checkpointing import choose_checkpointing
from .cost_model import CostSettings, DatasetSize
from .drawn import assumed_latents, drawn_latents
from .estimate import Estimate, estimate, format_estimate
from .split import split_bytes, split_text


def dry_run(
    config: TrainConfig, store: PairStore | None, pairs: Pairs | None = None, *, n_pairs: int | None = None
) -> tuple[str, dict]:
    """The text to print, and the same as JSON. Loads configs only and writes nothing.

    Args:
        store: None if `n_pairs` is given.
        pairs: what `select_pairs` gives for these settings, if it was called already.
        n_pairs: assume this many training pairs, each of two images and a prompt of its own.

    Raises:
        UsageError, PrefloopError: if training would be refused too; see refuse_impossible.
    """
    refuse_impossible(config)
    model = with_parts(find_model(config.model, config.revision), config.init_from, config.vae)
    family = with_text_defaults(family_of(model))
    refuse_unsuitable(config, family)
    refuse_unfit(config, family, model)
    if n_pairs is not None:
        drawn = assumed_latents(n_pairs, config)
        n_held_out = round(n_pairs / 19)  # beside them, of one prompt in twenty
        data = DatasetSize(n_pairs=n_pairs, n_images=2 * n_pairs, n_prompts=n_pairs, n_latents=drawn)
    else:
        assert store is not None
        pairs = select_pairs(store, config) if pairs is None else pairs
        data = DatasetSize(
            n_pairs=len(pairs.train),
            n_images=pairs.n_images(),
            n_prompts=len(pairs.prompts()),
            n_latents=drawn_latents(pairs, config, family),
        )
        n_held_out = len(pairs.validation)
    use_cuda = not config.on_cpu and torch.cuda.is_available()
    device = torch.device("cuda" if use_cuda else "cpu")
    n_devices = max(1, torch.cuda.device_count()) if use_cuda else 1
    plan = plan_validation(config, n_held_out)
    settings = replace(cost_settings_on(device, config, family), validation_pairs=plan.n_denoised(config))
    estimated = estimate(family, data, settings, measured_speed(device))
    resolved = config.resolved() | {
        "optimizer": optimizer_name(config, family),
        "resolution": config.resolution or family.resolution,
        "lora_alpha": config.lora_alpha or config.lora_rank,
    }
    shape = family.latent_channels, *([(config.resolution or family.resolution) // family.vae_factor] * 2)
    beta, noise = config.resolved_beta, noise_of(family, config)
    flow = isinstance(noise, RectifiedFlow)
    derived = {
        "family": family.name,
        "n_validation_pairs": n_held_out,
        "validation": asdict(plan),
        "beta_mean": beta,
        "beta_sum": None if beta is None else beta / math.prod(shape),
        "absolute_learning_rate": learning_rate(config, n_devices),
        "timestep_density": noise.density if flow else None,
        "timestep_shift": noise.shift if flow else None,
    }
    split = split_bytes(estimated.memory_bytes) if config.fsdp else None
    values = plain({"config": resolved} | derived | {"estimate": asdict(estimated), "bytes_by_processes": split})
    held_out = f"{'' if n_pairs is None else 'pairs are assumed, '}{plural(n_held_out, 'pair')} held out"
    if n_held_out:
        held_out += f", {plan.n_pairs:,} validated every {plural(plan.steps, 'step')}"
    sigma = f" (sigma {noise.density}, shift {noise.shift:g})" if flow else ""
    lines = [
        f"{name.replace('_', '-')} = {json.dumps(value)}"
        for name, value in plain(_that_apply(config, resolved)).items()
        if value is not None
    ]
    lines += [
        "",
        f"family    {family.name}, predicts {noise.prediction_type}{sigma}; {held_out}",
        f"beta      {beta:g} per element mean = {beta / math.prod(shape):.4g} per sum over "
        f"{shape[0]} x {shape[1]} x {shape[2]} values"
        if beta is not None
        else f"beta      {config.loss} has none",
        f"lr        {derived['absolute_learning_rate']:.4g}, absolute",
        f"weights   {_weights(estimated)}",
        format_estimate(estimated),
        *([] if split is None else [split_text(split)]),
    ]
    return "\n".join(lines), values


def _that_apply(config: TrainConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Without settings that another one makes idle or says in an earlier form."""
    idle = {"cpu"}
    idle |= {"kohya"} if config.format == "kohya" or not config.kohya else set()
    idle |= set() if config.lora_rank else {"lora_alpha", "lora_targets"}
    said = {"format": output_of(config)} if config.format == "auto" else {}
    said |= {"device": "cpu"} if config.on_cpu else {}
    return {name: value for name, value in (settings | said).items() if name not in idle}


def _weights(estimated: Estimate) -> str:
    whole, trained = _count(estimated.n_parameters), _count(estimated.n_trained)
    if not estimated.n_lora_layers:
        return f"{whole}, all trained"
    return f"{whole}; the LoRA adds {trained}, on {estimated.n_lora_layers} of {estimated.n_linear} linear layers"


def _count(n: int) -> str:
    if n >= 1e6:
        return f"{n / 1e9:.3g} billion" if n >= 1e9 else f"{n / 1e6:.3g} million"
    return f"{n:,}"


def cost_settings_on(device: torch.device, config: TrainConfig, family: Family, n_processes: int = 1) -> CostSettings:
    """Those of `cost_settings`, with gradient checkpointing as auto chooses it for a device."""
    settings = replace(cost_settings(config, family, device.type), n_processes=n_processes)
    if settings.auto_checkpointing:
        settings = replace(settings, gradient_checkpointing=choose_checkpointing(family, settings, device))
    return settings


def cost_settings(config: TrainConfig, family: Family, device: str = "cuda") -> CostSettings:
    """The settings that cost depends on, on one device of a type."""
    name: Any = optimizer_name(config, family)
    resolution = config.resolution or family.resolution
    return CostSettings(
        resolution=resolution,
        train_batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        max_train_steps=config.max_train_steps,
        n_processes=1,
        lora_rank=config.lora_rank,
        lora_targets=config.lora_targets,
        mixed_precision=config.mixed_precision,
        gradient_checkpointing=config.gradient_checkpointing is True,
        auto_checkpointing=config.gradient_checkpointing == "auto",
        optimizer=name,
        images_per_pair=2 if config.method.needs_rejected else 1,
        has_reference=config.needs_reference,
        separate_reference=config.reference is not None,
        quantize=config.quantize,
        reference_draws=bool(config.reference_draws),
        ema=config.ema_decay is not None,
        flip=config.random_flip,
        encode_batch=encode_batch(resolution, resolution, device),
        vae_dtype=config.vae_dtype,
    )
