"""Generate the images that are missing, and pair them."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from uuid import UUID

from ..core.executor import Pool
from ..core.ids import canonical, content_id
from ..core.progress import progress
from ..core.signals import StopSignal
from ..models.model import Model
from ..models.resolve import find_model
from ..store import PairStore, generation_id, prompt_id
from ..store.runs import Run, run
from .config import GenerateConfig
from .defaults import resolve_defaults
from .image_worker import EncodedImage, ImageWorker, ModelFacts, image_batches, image_workers
from .pairing import Candidate, pair_rows
from .prompts import Prompt, identity_of, read_prompts

INGEST_EVERY = 50  # batches


@dataclass(frozen=True)
class Generation:
    """One image of a plan."""

    prompt: str
    index: int
    generation_id: UUID


@dataclass(frozen=True)
class Plan:
    """The images that a call of `generate` stands for, and which of them the store lacks."""

    config: GenerateConfig
    """With every default resolved."""
    model: Model
    prompts: list[Prompt]
    generations: list[Generation]
    missing: list[Generation]


def plan(config: GenerateConfig, store: PairStore | None) -> Plan:
    """Find the model, resolve the defaults and read the prompts. Loads no weights.

    Args:
        store: None if it does not exist yet.
    """
    model = find_model(config.model)
    config = resolve_defaults(config, model, store)
    return plan_generations(config, model, read_prompts(config.prompts or "", config.limit), store)


def plan_generations(config: GenerateConfig, model: Model, prompts: list[Prompt], store: PairStore | None) -> Plan:
    """The plan of a config whose defaults are resolved; ids follow from prompts, model and settings."""
    sampling = config.sampling()
    generations = [
        Generation(prompt.text, index, generation_id(prompt.text, model.model_id, sampling, config.seed, index))
        for prompt in prompts
        for index in range(config.images_per_prompt)
    ]
    existing: set[UUID] = set()
    if store is not None:
        query = "select generation_id from generations where model_id = ? and seed = ?"
        existing = {identity for (identity,) in store.rows(query, [model.model_id, config.seed])}
    missing = [item for item in generations if item.generation_id not in existing]
    return Plan(config, model, prompts, generations, missing)


def generate(config: GenerateConfig, store: PairStore) -> dict:
    """Plan, then run the plan; see `run_plan`."""
    return run_plan(plan(config, store), store)


def run_plan(planned: Plan, store: PairStore, workers: Pool[ImageWorker] | None = None) -> dict:
    """Generate what is missing, in batches across prompts, and pair the images of each prompt.

    Args:
        workers: of this plan; by default they are started if an image is missing.

    Returns:
        Counts: prompts, images, generated, pairs (all of this plan), new_pairs, truncated.
    """
    config, name = planned.config, planned.config.model
    key = content_id(canonical({"sampler": config.sampling(), "model": name, "prompts": config.prompts}).encode())
    with (
        store.stage_lock("generate", key.hex[:16]),
        StopSignal().listening() as stop,
        run(store, "generate", config) as stage_run,
    ):
        summary = generate_missing(planned, store, stage_run, stop, workers)
        summary |= _add_pairs(planned, store, stage_run.run_id)
        stage_run.summary |= summary
    return summary


def generate_missing(
    planned: Plan, store: PairStore, stage_run: Run, stop: StopSignal, workers: Pool[ImageWorker] | None = None
) -> dict:
    """Generate the missing images of a plan; each finished batch is safe. The run records which prompts it read.

    Returns:
        Counts: prompts, images, generated, truncated.
    """
    summary = {
        "prompts": len(planned.prompts),
        "images": len(planned.generations),
        "generated": len(planned.missing),
        "truncated": 0,
    }
    if planned.config.prompts is not None:
        stage_run.summary["prompt_source"] = identity_of(planned.config.prompts)
    store.add_prompts((p.text, p.tags) for p in planned.prompts)
    if not planned.missing:
        store.ingest()
        return summary
    with image_workers(planned) if workers is None else nullcontext(workers) as pool:
        facts = model_facts(pool, [prompt.text for prompt in planned.prompts], stop)
        summary["truncated"] = facts.n_truncated
        model = planned.model
        if not store.rows("select 1 from models where model_id = ?", [model.model_id]):  # it keeps the name it has
            row = {"model_id": model.model_id, "name": model.name, "config": canonical(facts.description)}
            store.append("models", [row])
        total = len(planned.generations)
        with progress(total, "images", initial=total - len(planned.missing)) as bar:
            done = pool.done(ImageWorker.images, image_batches(planned), stop)
            for number, (batch, images) in enumerate(done, 1):
                _store_batch(store, planned, batch.generations, images, stage_run.run_id)
                bar.update(len(images))
                if number % INGEST_EVERY == 0:
                    store.try_ingest()
                stop.check(f"{bar.n} of {total} images are in {store.path}")
    store.ingest()
    return summary


def model_facts(workers: Pool[ImageWorker], prompts: list[str], stop: StopSignal) -> ModelFacts:
    """From the first worker that has loaded the model."""
    ((_, facts),) = workers.done(ImageWorker.facts, [prompts], stop)
    return facts


def _store_batch(
    store: PairStore, planned: Plan, batch: list[Generation], images: Sequence[EncodedImage], run_id: UUID
) -> None:
    image_rows = [store.write_image(image.data, image.width, image.height) for image in images]
    sampling = canonical(planned.config.sampling())
    store.append("images", image_rows)
    store.append(
        "generations",
        [
            {
                "generation_id": item.generation_id,
                "prompt_id": prompt_id(item.prompt),
                "model_id": planned.model.model_id,
                "image_id": image_row["image_id"],
                "sampling": sampling,
                "seed": planned.config.seed,
                "image_index": item.index,
                "run_id": run_id,
            }
            for item, image_row in zip(batch, image_rows, strict=True)
        ],
    )


def image_ids(generations: list[Generation], store: PairStore) -> dict[UUID, UUID]:
    """Generation id → image id, of those in the store."""
    query = """select generation_id, image_id from generations
        join (select unnest($ids::uuid[]) as generation_id) using (generation_id)"""
    return dict(store.rows(query, {"ids": [item.generation_id for item in generations]}))


def _add_pairs(planned: Plan, store: PairStore, run_id: UUID) -> dict:
    config, images = planned.config, image_ids(planned.generations, store)
    candidates: dict[UUID, list[Candidate]] = defaultdict(list)
    for item in planned.generations:
        candidates[prompt_id(item.prompt)].append(Candidate(images[item.generation_id]))
    pairs: dict[UUID, dict] = {}
    for prompt, of_prompt in candidates.items():
        pairs |= pair_rows(prompt, of_prompt, config.pairing, config.seed, "generate", run_id)
    n_new = store.append_new("pairs", pairs.values())
    store.try_ingest()
    return {"pairs": len(pairs), "new_pairs": n_new}
