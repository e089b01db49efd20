"""What must be there before the first step: cached latents, texts and, where asked for, the reference's errors."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import torch

from ..core.hashing import fingerprint
from ..core.ids import canonical, content_id
from ..core.signals import StopSignal
from ..models.family import family_of, load_noise
from ..models.model import Model
from ..models.resolve import with_parts
from ..store import IntegrityError, PairStore
from .cache import Rows, TensorCache, cache_latents, cache_texts
from .config import TrainConfig
from .data import TrainingData, image_frames
from .pair_denoiser import PairDenoiser
from .pairs import Pairs, select_pairs
from .policy import load_text_encoders, load_vae
from .run_folder.saved_pairs import count_changed_labels, load_pairs, save_pairs

# What the reference's errors of a pair's draws depend on, beside its pair, its model and the seed.
_DRAWN = (
    "vae",
    "init_from",
    "resolution",
    "random_crop",
    "aspect_buckets",
    "random_flip",
    "proportion_empty_prompts",
    "noise_offset",
    "input_perturbation",
    "mixed_precision",
    "lora_rank",
)


def as_begun(
    config: TrainConfig, store: PairStore, model: Model, device: torch.device, stop: StopSignal, *, main: bool
) -> tuple[TrainingData, Any]:
    """As `prepared`, of the pairs that the run in the folder was begun with; where it begins they are kept with it.

    Args:
        main: whether this process writes and speaks for all.

    Raises:
        IntegrityError: where pairs it was begun with cannot be used any more.
    """
    output = Path(config.output_dir)
    kept = load_pairs(output, config, store)
    pairs = select_pairs(store, config) if kept is None else kept
    data, scheduler = prepared(config, store, model, device, pairs, stop)
    if kept is None:
        if main:
            save_pairs(output, config, pairs, data.pairs)
    elif lost := len(pairs) - len(data.pairs):
        raise IntegrityError(
            f"the images of {lost} pairs that the run in {output} was begun with cannot be used any more; "
            "`prefloop store check` names them; put them back, or name another folder"
        )
    elif main and (changed := count_changed_labels(output, config, store)):
        print(
            f"{changed} label{'s' * (changed > 1)} new or changed since; the run in {output} goes on with those it began with",
            file=sys.stderr,
        )
    return data, scheduler


def prepared(
    config: TrainConfig,
    store: PairStore,
    model: Model,
    device: torch.device,
    pairs: Pairs,
    stop: StopSignal,
) -> tuple[TrainingData, Any]:
    """The data and the noise schedule; what is not cached yet is encoded, and the encoders are gone when this returns."""
    family = family_of(model)
    frames = image_frames(pairs, config, family)
    vae = load_vae(model, config.vae, device)
    latents, pairs = cache_latents(store, pairs, frames, vae, _vae_key(config, model), stop)
    del vae
    stop.check("the images are encoded")
    encode = load_text_encoders(model, family, device)
    texts = cache_texts(store, pairs, encode, model.root.model_id.hex, stop)
    del encode
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return TrainingData(pairs, latents, texts, config, family), load_noise(model, family)


def _vae_key(config: TrainConfig, model: Model) -> str:
    """Of the encoder's weights: models that share a VAE share latents."""
    vae = with_parts(model, vae=config.vae).composition.vae
    if vae is not None:
        return vae.part_id.hex
    folder = Path(model.root.source) / "vae"
    if folder.is_dir():
        return fingerprint(folder).hex
    return content_id(canonical({"vae": None, "model": model.root.model_id.hex}).encode()).hex


def with_reference(
    data: TrainingData,
    denoiser: PairDenoiser,
    store: PairStore,
    model: Model,
    step: int,
    stop: StopSignal | None = None,
) -> TrainingData:
    """The data with the reference's errors of every draw that returns; computed by the model before its first step.

    Raises:
        Interrupted: where a signal has come; what was computed is kept.
    """
    settings = {name: value for name, value in asdict(data.config).items() if name in _DRAWN}
    name = content_id(canonical(settings | {"model": model.model_id.hex}).encode()).hex
    shards = TensorCache(store.path / "cache" / f"reference-{name[:16]}")
    draws = {draw.reference: draw for draw in data.every_fixed() if draw.reference is not None}

    def errors_of(ids: Sequence[UUID]) -> Rows:
        chosen, order = [], []
        batches = replace(data, reference=None).drawn([draws[identity] for identity in ids])
        for batch in batches:
            errors = denoiser.reference_errors([batch])
            chosen.append(torch.stack([errors.chosen, errors.rejected], dim=1).float().cpu())
        # batches of several frames come frame by frame
        by_frame: dict[tuple[int, int], list[UUID]] = {}
        for identity in ids:
            frame = data.frames[draws[identity].pair.pair_id]
            by_frame.setdefault((frame.height, frame.width), []).append(identity)
        for alike in by_frame.values():
            order += alike
        return order, {"errors": torch.cat(chosen)}

    missing = shards.missing(sorted(draws))
    if missing and step:
        denoiser = denoiser.of_the_beginning(model)
    shards.fill(missing, errors_of, "asking the reference", data.config.train_batch_size, stop)
    return replace(data, reference=shards)
