"""What must exist before the first step: cached latents, prompt embeddings and, if asked for, the reference's errors."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import numpy as np
import pyarrow as pa
import torch

from ..core.hashing import fingerprint
from ..core.id_columns import IdColumn, as_keys
from ..core.ids import canonical, content_id
from ..core.signals import StopSignal
from ..core.text import plural
from ..models.families import family_of
from ..models.model import Model
from ..models.parts import with_parts
from ..store import IntegrityError, PairStore
from .cache import LatentCache, cache_prompt_embeds, refuse_absent
from .config import TrainConfig
from .crop_plan import pair_crops, uses_any
from .data import TrainingData
from .encoders import load_text_encoders, load_vae
from .monitor.validation import validated
from .pair_denoiser import PairDenoiser
from .pairs import Pairs, kept_pairs, kept_rows, select_pairs
from .ranks import ALONE, Ranks
from .run_folder.saved_pairs import Selection, load_pairs, save_pairs, select_for_run
from .tensor_cache import Rows, open_cache
from .vae import VaeEncoder

Given = TypeVar("Given")
Made = TypeVar("Made")
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
_AFFECT_REFERENCE_IF_GIVEN = ("timestep_density", "timestep_shift", "min_timestep", "max_timestep", "quantize")


def data_for_run(
    config: TrainConfig,
    store: PairStore,
    model: Model,
    device: torch.device,
    stop: StopSignal,
    selection: Selection | None = None,
    ranks: Ranks = ALONE,
) -> TrainingData:
    """`prepared_data` with the pairs that the run in the folder began with; a new run keeps its pairs there.

    Args:
        selection: what `select_for_run` gives for the settings, if it was called already.

    Raises:
        IntegrityError: if pairs it began with cannot be used any more.
    """
    output = Path(config.output_dir)
    is_new, pairs = _pairs_of_run(config, store, selection, ranks)
    data = prepared_data(config, store, model, device, pairs, stop, ranks)

    def keep() -> None:
        if is_new:
            save_pairs(output, config, pairs, data.pairs)
        elif lost := len(pairs) - len(data.pairs):
            raise IntegrityError(
                f"the images of {lost} pairs that the run in {output} began with cannot be used any more; "
                "`prefloop store check` names them; put them back, or name another folder"
            )

    ranks.on_main(keep)
    return data


def _pairs_of_run(
    config: TrainConfig, store: PairStore, selection: Selection | None, ranks: Ranks
) -> tuple[bool, Pairs]:
    """Whether the run begins, and its pairs as the main process finds them: labels may arrive while the processes start."""
    found: list[tuple[bool, Pairs]] = []

    def find() -> None:
        output = Path(config.output_dir)
        selected = selection or select_for_run(config, store)
        kept = load_pairs(output, config, store)
        if kept is None:
            found.append((True, selected.pairs or select_pairs(store, config)))
            return
        found.append((False, kept))
        if selected.pairs is not None:  # an --overwrite that was killed hid the run
            selected = select_for_run(config, store)
        if selected.n_changed:
            print(
                f"{plural(selected.n_changed, 'label')} new or changed since; the run in {output} continues with those it "
                "began with",
                file=sys.stderr,
            )

    ranks.on_main(find)
    if ranks.world == 1:
        return found[0]
    if ranks.is_main:
        is_new, found_pairs = found[0]
        ranks.from_main((is_new, kept_rows(found_pairs, found_pairs)))
        return found[0]
    is_new, rows = ranks.from_main((False, pa.table({})))
    return is_new, kept_pairs(rows, store.prompts_by_id(rows["prompt_id"]))


def prepared_data(
    config: TrainConfig,
    store: PairStore,
    model: Model,
    device: torch.device,
    pairs: Pairs,
    stop: StopSignal,
    ranks: Ranks = ALONE,
) -> TrainingData:
    """The training data, with the latents of validation and all prompt embeddings; `TrainingData.encode` adds the latents of
    training as its steps come to them. Encoders are loaded only where something is missing."""
    family = family_of(model)
    vae = VaeEncoder(lambda: load_vae(model, config.vae, torch.device("cpu")), family.latents, device, config.vae_dtype)
    crops = pair_crops(pairs, config, family)
    latents = LatentCache(store, crops, vae, _vae_key(config, model), stop, device.type, ranks)
    pairs = _with_readable_validation(pairs, latents, config.seed)
    latents.release()  # the text encoders need the memory; it is loaded again for the first block of steps
    ranks.check(stop, "the images are encoded")
    encode = on_first_use(lambda: load_text_encoders(model, family, device))
    kept: torch.dtype = getattr(torch, family.dtype)
    key, empty = model.root.model_id.hex, family.negative_prompt
    prompt_embeds = cache_prompt_embeds(store, pairs, encode, kept, key, stop, empty, ranks)
    del encode
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return TrainingData(pairs, latents.rows, prompt_embeds, config, family, encoder=latents)


def _with_readable_validation(pairs: Pairs, latents: LatentCache, seed: int) -> Pairs:
    """The pairs without held-out ones that would be validated on and whose images cannot be used; the others are encoded."""
    readable, table = np.arange(len(pairs.validation)), pairs.validation.table
    while lost := latents.fill(latents.crops.of_validation(readable[validated(len(readable), seed)])):
        readable = readable[~uses_any(table, lost)[readable]]
    if len(readable) == len(pairs.validation):
        return pairs
    return replace(pairs, validation=pairs.validation.select(readable))


def on_first_use(load: Callable[[], Callable[[Given], Made]]) -> Callable[[Given], Made]:
    """The function that `load` returns, loaded when it is first called."""
    loaded = cache(load)
    return lambda given: loaded()(given)


def _vae_key(config: TrainConfig, model: Model) -> str:
    """A hash of the encoder's weights and dtype: models that share a VAE share latents."""
    key = _weights_key(config, model)
    if config.vae_dtype == "float32":
        return key
    return content_id(canonical({"vae": key, "dtype": config.vae_dtype}).encode()).hex


def _weights_key(config: TrainConfig, model: Model) -> str:
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
    ranks: Ranks = ALONE,
) -> TrainingData:
    """The data with the reference's errors on every draw of the steps that follow, computed by the policy as it is before its
    first step. The latents are encoded first.

    Raises:
        Interrupted: after a signal; what was computed is kept.
    """
    settings = {name: value for name, value in asdict(data.config).items() if name in _AFFECT_REFERENCE}
    settings |= {
        name: value for name in _AFFECT_REFERENCE_IF_GIVEN if (value := getattr(data.config, name)) not in (None, "no")
    }
    if data.config.vae_dtype != "float32":
        settings["vae_dtype"] = data.config.vae_dtype
    if data.noise.prediction_type == "flow":  # the draws of a pair share its range of noise levels
        settings["reference_draws"] = data.config.reference_draws
    name = content_id(canonical(settings | {"model": model.model_id.hex}).encode()).hex
    per_step = data.config.train_batch_size * data.config.gradient_accumulation_steps * ranks.world
    first, end = step * per_step, data.config.max_train_steps * per_step
    data.encode(first, end)
    draws = {draw.draw_id: draw for _, draw in data.cached_draws(first, end) if draw.draw_id is not None}
    keys = np.sort(as_keys(draws))
    rows, missing = open_cache(store.path / "cache" / f"reference-{name[:16]}", keys, ranks)
    initial = cache(lambda: denoiser.with_initial_weights(model) if step else denoiser)

    batch, plain = data.config.train_batch_size, replace(data, reference_errors=None)

    def errors_of(ids: Sequence[UUID]) -> Rows:
        by_size: dict[tuple[int, int], list[UUID]] = {}
        for draw_id in ids:
            by_size.setdefault(data.crop(draws[draw_id].pair).size, []).append(draw_id)
        parts = []
        for alike in by_size.values():
            # as in LatentCache, always a whole batch: otherwise the rounding would depend on what else is missing
            whole = [draws[draw_id] for draw_id in [*alike, *alike[:1] * (batch - len(alike))]]
            errors = initial().reference_errors(plain.sample_batch(whole))
            parts.append(torch.stack([errors.chosen, errors.rejected], dim=1)[: len(alike)].float().cpu())
        return [draw_id for alike in by_size.values() for draw_id in alike], {"errors": torch.cat(parts)}

    # crop size by crop size, so that few batches have more than one
    ids = IdColumn(missing)
    if data.config.aspect_buckets:
        ids = sorted(ids, key=lambda draw_id: data.crop(draws[draw_id].pair).size)
    idle = (lambda: errors_of(ids[:1])) if denoiser.policy.sharded else None
    rows.fill(ids, errors_of, "computing reference errors", batch, stop, ranks, idle=idle)
    ranks.together(lambda: refuse_absent(rows, keys))
    return replace(data, reference_errors=rows)
