"""What must exist before the first step: cached latents, prompt embeddings and, if asked for, the reference's errors."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from uuid import UUID

import torch

from ..core.hashing import fingerprint
from ..core.ids import canonical, content_id
from ..core.signals import StopSignal
from ..models.families import family_of
from ..models.model import Model
from ..models.parts import with_parts
from ..store import IntegrityError, PairStore
from .cache import Rows, TensorCache, cache_latents, cache_prompt_embeds
from .config import TrainConfig
from .crop_plan import image_crops
from .data import TrainingData
from .pair_denoiser import PairDenoiser
from .pairs import Pairs, select_pairs
from .policy import load_text_encoders, load_vae
from .run_folder.saved_pairs import count_changed_labels, load_pairs, save_pairs

# Settings that the reference's errors depend on, beside the pairs, the model and the seed.
_AFFECT_REFERENCE = (
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
# Likewise, if they are given: hashes of earlier versions do not contain them.
_AFFECT_REFERENCE_IF_GIVEN = ("timestep_density", "timestep_shift", "min_timestep", "max_timestep")


def data_for_run(
    config: TrainConfig,
    store: PairStore,
    model: Model,
    device: torch.device,
    stop: StopSignal,
    pairs: Pairs | None = None,
    *,
    main: bool,
) -> TrainingData:
    """`prepared_data` with the pairs that the run in the folder began with; a new run keeps its pairs there.

    Args:
        pairs: what the settings select, if it is known already.
        main: whether this process writes and speaks for all.

    Raises:
        IntegrityError: if pairs it began with cannot be used any more.
    """
    output = Path(config.output_dir)
    kept = load_pairs(output, config, store)
    if kept is not None:
        pairs = kept
    elif pairs is None:
        pairs = select_pairs(store, config)
    data = prepared_data(config, store, model, device, pairs, stop)
    if kept is None:
        if main:
            save_pairs(output, config, pairs, data.pairs)
    elif lost := len(pairs) - len(data.pairs):
        raise IntegrityError(
            f"the images of {lost} pairs that the run in {output} began with cannot be used any more; "
            "`prefloop store check` names them; put them back, or name another folder"
        )
    elif main and (changed := count_changed_labels(output, config, store)):
        print(
            f"{changed} label{'s' * (changed > 1)} new or changed since; the run in {output} continues with those it began with",
            file=sys.stderr,
        )
    return data


def prepared_data(
    config: TrainConfig,
    store: PairStore,
    model: Model,
    device: torch.device,
    pairs: Pairs,
    stop: StopSignal,
) -> TrainingData:
    """The training data. What is not cached yet is encoded, and the encoders are out of memory when this returns."""
    family = family_of(model)
    crops = image_crops(pairs, config, family)
    vae = load_vae(model, config.vae, device)
    latents, pairs = cache_latents(store, pairs, crops, partial(family.latents, vae), _vae_key(config, model), stop)
    del vae
    stop.check("the images are encoded")
    encode = load_text_encoders(model, family, device)
    kept: torch.dtype = getattr(torch, family.dtype)
    key, empty = model.root.model_id.hex, family.negative_prompt
    prompt_embeds = cache_prompt_embeds(store, pairs, encode, kept, key, stop, empty)
    del encode
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return TrainingData(pairs, latents, prompt_embeds, config, family)


def _vae_key(config: TrainConfig, model: Model) -> str:
    """A hash of the encoder's weights: models that share a VAE share latents."""
    vae = with_parts(model, vae=config.vae).composition.vae
    if vae is not None:
        return vae.part_id.hex
    folder = Path(model.root.source) / "vae"
    if folder.is_dir():
        return fingerprint(folder).hex
    return content_id(canonical({"vae": None, "model": model.root.model_id.hex}).encode()).hex


def with_reference_errors(
    data: TrainingData,
    denoiser: PairDenoiser,
    store: PairStore,
    model: Model,
    step: int,
    stop: StopSignal | None = None,
) -> TrainingData:
    """The data with the reference's errors on every cached draw, computed by the policy as it is before its first step.

    Raises:
        Interrupted: after a signal; what was computed is kept.
    """
    settings = {name: value for name, value in asdict(data.config).items() if name in _AFFECT_REFERENCE}
    settings |= {
        name: value for name in _AFFECT_REFERENCE_IF_GIVEN if (value := getattr(data.config, name)) is not None
    }
    if data.noise.prediction_type == "flow":  # the draws of a pair share its range of noise levels
        settings["reference_draws"] = data.config.reference_draws
    name = content_id(canonical(settings | {"model": model.model_id.hex}).encode()).hex
    cache = TensorCache(store.path / "cache" / f"reference-{name[:16]}")
    draws = {draw.draw_id: draw for draw in data.cached_draws() if draw.draw_id is not None}

    def errors_of(ids: Sequence[UUID]) -> Rows:
        rows = []
        for batch in replace(data, reference_errors=None).sample_batch([draws[draw_id] for draw_id in ids]):
            errors = denoiser.reference_errors([batch])
            rows.append(torch.stack([errors.chosen, errors.rejected], dim=1).float().cpu())
        # the batches come crop size by crop size
        by_size: dict[tuple[int, int], list[UUID]] = {}
        for draw_id in ids:
            by_size.setdefault(data.crop(draws[draw_id].pair).size, []).append(draw_id)
        return [draw_id for alike in by_size.values() for draw_id in alike], {"errors": torch.cat(rows)}

    missing = cache.missing(sorted(draws))
    if missing and step:
        denoiser = denoiser.with_initial_weights(model)
    cache.fill(missing, errors_of, "computing reference errors", data.config.train_batch_size, stop)
    return replace(data, reference_errors=cache)
