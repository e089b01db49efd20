"""Draw the pictures that are missing, and pair them."""

import random
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING
from uuid import UUID

from ..core.ids import canonical, content_id
from ..core.progress import progress
from ..core.signals import StopSignal
from ..models.resolve import Model, find_model
from ..store import PairStore, generation_id, prompt_id
from ..store.images import png_bytes
from ..store.pairstore import new_pair
from ..store.runs import Run, run
from .config import GenerateConfig, Pairing
from .defaults import settled
from .prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from PIL import Image

    from .sampler import Sampler

ABSORB_EVERY = 50  # batches between takings of the journal into the tables


@dataclass(frozen=True)
class Generation:
    """One picture to be drawn."""

    prompt: str
    index: int
    generation_id: UUID


@dataclass(frozen=True)
class Plan:
    """What a call of `generate` asks for, and what of it the store lacks."""

    config: GenerateConfig
    """Settled: nothing in it is left open."""
    model: Model
    prompts: list[Prompt]
    wanted: list[Generation]
    missing: list[Generation]


def plan(config: GenerateConfig, store: PairStore | None, model: Model | None = None) -> Plan:
    """Loads nothing: ids follow from names, files and settings. `store` is None where there is none yet.

    Args:
        model: the config's, where it has been found and the config settled already.
    """
    if model is None:
        model = find_model(config.model)
        config = settled(config, model, store)
    prompts = read_prompts(config.prompts or "", config.limit)
    wanted = [
        Generation(prompt.text, index, generation_id(prompt.text, model.model_id, config.sampler(), config.seed, index))
        for prompt in prompts
        for index in range(config.images_per_prompt)
    ]
    there: set[UUID] = set()
    if store is not None:
        query = "select generation_id from generations where model_id = ? and seed = ?"
        there = {identity for (identity,) in store.rows(query, [model.model_id, config.seed])}
    return Plan(config, model, prompts, wanted, [one for one in wanted if one.generation_id not in there])


def generate(config: GenerateConfig, store: PairStore, sampler: "Sampler | None" = None) -> dict:
    """Draw what is missing, in batches across prompts, and pair the pictures of each prompt.

    Args:
        sampler: one that is loaded already; None loads it where there is something to draw.

    Returns:
        Counts: prompts, images, drawn, pairs (all this call asks for), new_pairs, truncated.
    """
    model = find_model(config.model)
    config = settled(config, model, store)
    key = content_id(
        canonical({"sampler": config.sampler(), "model": config.model, "prompts": config.prompts}).encode()
    )
    with (
        store.stage_lock("generate", key.hex[:16]),
        StopSignal().listening() as stop,
        run(store, "generate", config) as this,
    ):
        planned = plan(config, store, model)
        summary = draw(planned, store, this, stop, sampler)
        summary |= _pair(planned.wanted, config, store, this.run_id)
        this.summary |= summary
    return summary


def draw(
    planned: Plan,
    store: PairStore,
    this: Run,
    stop: StopSignal,
    sampler: "Sampler | None" = None,
) -> dict:
    """Draw the missing pictures of a plan; each finished batch is safe."""
    summary = {
        "prompts": len(planned.prompts),
        "images": len(planned.wanted),
        "drawn": len(planned.missing),
        "truncated": 0,
    }
    store.add_prompts((p.text, p.tags) for p in planned.prompts)
    if not planned.missing:
        store.ingest()
        return summary
    from .sampler import Sampler

    model, config = planned.model, planned.config
    with stop.at_once():  # nothing is written while weights are read
        sampler = sampler or Sampler(model, config)
    summary["truncated"] = sampler.n_truncated([prompt.text for prompt in planned.prompts])
    if not store.rows("select 1 from models where model_id = ?", [model.model_id]):  # it keeps the name it has
        store.append(
            "models", [{"model_id": model.model_id, "name": model.name, "config": canonical(sampler.described)}]
        )
    with progress(len(planned.wanted), "images", initial=len(planned.wanted) - len(planned.missing)) as bar:
        for number, (batch, images) in enumerate(sampler.batches(planned.missing), 1):
            _keep(store, planned.model, batch, images, config, this.run_id)
            bar.update(len(batch))
            if number % ABSORB_EVERY == 0:
                store.try_ingest()
            stop.check(f"{bar.n} of {len(planned.wanted)} images are in {store.path}")
    store.ingest()
    return summary


def _keep(
    store: PairStore,
    model: Model,
    batch: list[Generation],
    images: "list[Image.Image]",
    config: GenerateConfig,
    run_id: UUID,
) -> None:
    pictures = [store.write_image(png_bytes(image), image.width, image.height) for image in images]
    sampler = canonical(config.sampler())
    store.append("images", pictures)
    store.append(
        "generations",
        [
            {
                "generation_id": one.generation_id,
                "prompt_id": prompt_id(one.prompt),
                "model_id": model.model_id,
                "image_id": picture["image_id"],
                "sampling": sampler,
                "seed": config.seed,
                "image_index": one.index,
                "run_id": run_id,
            }
            for one, picture in zip(batch, pictures, strict=True)
        ],
    )


def images_of(wanted: list[Generation], store: PairStore) -> dict[UUID, UUID]:
    """The image of each generation that is in the store."""
    query = """select generation_id, image_id from generations
        join (select unnest($ids::uuid[]) as generation_id) using (generation_id)"""
    return dict(store.rows(query, {"ids": [one.generation_id for one in wanted]}))


def _pair(wanted: list[Generation], config: GenerateConfig, store: PairStore, run_id: UUID) -> dict:
    images = images_of(wanted, store)
    of_prompt: dict[str, list[UUID]] = defaultdict(list)
    for one in wanted:
        of_prompt[one.prompt].append(images[one.generation_id])
    pairs = {}
    for prompt, candidates in of_prompt.items():
        identity = prompt_id(prompt)
        for first, second in paired(candidates, config.pairing, f"{config.seed}:{identity}"):
            pair = new_pair(identity, first, second, "generate", run_id)
            if pair is not None:
                pairs[pair["pair_id"]] = pair
    n_new = store.append_new("pairs", pairs.values())
    store.try_ingest()
    return {"pairs": len(pairs), "new_pairs": n_new}


def paired(candidates: list[UUID], how: Pairing, seed: str) -> list[tuple[UUID, UUID]]:
    """Two by two, in one of the three ways. `seed` decides the random one."""
    if how == "all":
        return list(combinations(candidates, 2))
    if how == "adjacent":
        return list(pairwise(candidates))
    shuffled = random.Random(seed).sample(candidates, len(candidates))
    return list(zip(shuffled[::2], shuffled[1::2], strict=False))
