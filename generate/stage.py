"""Generate the images that are missing, and pair them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count, groupby
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from ..core.background import in_background
from ..core.chunks import chunks
from ..core.executor import Pool
from ..core.files import refuse_unwritable
from ..core.id_columns import IdColumn
from ..core.ids import canonical, content_id, generation_bytes
from ..core.progress import progress
from ..core.signals import StopSignal
from ..models.model import Model
from ..models.resolve import find_model
from ..store import PairStore, prompt_id
from ..store.runs import Run, run
from .config import GenerateConfig
from .defaults import resolve_defaults
from .generations import Generation, Generations, find_images, in_store
from .image_worker import EncodedImage, ImageBatch, ImageWorker, ModelFacts, encoded, image_batches, image_workers
from .pairing import Candidate, pair_rows
from .prompts import Prompt, identity_of, read_prompts

if TYPE_CHECKING:
    from PIL.Image import Image

INGEST_EVERY = 50  # batches
PAIRS_AT_ONCE = 65_536  # that are written


@dataclass(frozen=True)
class Plan:
    """The images that a call of `generate` stands for, and which of them the store lacks."""

    config: GenerateConfig
    """With every default resolved."""
    model: Model
    prompts: list[Prompt]
    generations: Generations
    """Prompt by prompt."""
    missing: Generations


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
    texts, k = [prompt.text for prompt in prompts], config.images_per_prompt
    ids = generation_bytes(texts, model.model_id, config.sampling(), config.seed, k)
    generations = Generations(texts, k, np.frombuffer(ids, "S16"))
    missing = generations if store is None else generations.where(~in_store(generations.keys, store))
    return Plan(config, model, prompts, generations, missing)


def generate(config: GenerateConfig, store: PairStore) -> dict:
    """Plan, then run the plan; see `run_plan`."""
    return run_plan(plan(config, store), store)


def run_plan(
    planned: Plan,
    store: PairStore,
    workers: Pool[ImageWorker] | None = None,
    begin: Callable[[], object] = lambda: None,
) -> dict:
    """Generate what is missing, in batches across prompts, and pair the images of each prompt.

    Args:
        workers: of this plan; by default they are started here.
        begin: called before anything is generated or written, when nothing can refuse it any more: no other process runs this
            plan, and the model is loaded.

    Returns:
        Counts: prompts, images, generated, pairs (all of this plan), new_pairs, truncated.

    Raises:
        BusyError, WriteError: if another process runs the same plan, or the store cannot be written; before the model is loaded,
            which takes long.
    """
    config = planned.config
    same = {"model": planned.model.model_id.hex, "prompts": config.prompts, "seed": config.seed}
    key = content_id(canonical({"sampler": config.sampling()} | same).encode())
    with (
        store.stage_lock("generate", key.hex[:16]),
        StopSignal().listening() as stop,
        image_workers(planned) if workers is None else nullcontext(workers) as pool,
    ):
        if (
            store.has_new_parts()
        ):  # another process, which had the lock, may have generated some of them since they were planned
            store.try_ingest()
            missing = planned.missing.where(~in_store(planned.missing.keys, store))
            planned = replace(planned, missing=missing)
        if planned.missing:
            refuse_unwritable(store.journal)
            model_facts(pool, [], stop)
        begin()
        with run(store, "generate", config) as stage_run:
            summary = generate_missing(planned, store, stage_run, stop, pool)
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
        numbers, total = count(1), len(planned.generations)

        def write(result: "tuple[ImageBatch, Sequence[Image | EncodedImage]]") -> int:
            batch, images = result
            _store_batch(store, planned, batch.generations, encoded(images), stage_run.run_id)
            if next(numbers) % INGEST_EVERY == 0:
                store.try_ingest()
            return len(images)

        function = ImageWorker.images if planned.config.workers == 1 else ImageWorker.encoded_images
        with progress(total, "images", initial=total - len(planned.missing)) as bar:
            done = pool.done(function, image_batches(planned.missing, facts.batch_size, stop), stop)
            for n_written in in_background(done, write):
                bar.update(n_written)
            stop.check(f"{bar.n} of {total} images are in {store.path}")
    store.ingest()
    return summary


def model_facts(workers: Pool[ImageWorker], prompts: list[str], stop: StopSignal) -> ModelFacts:
    """From the first worker that has loaded the model."""
    ((_, facts),) = workers.done(ImageWorker.facts, [prompts], stop)
    return facts


def _store_batch(
    store: PairStore, planned: Plan, batch: Sequence[Generation], images: Sequence[EncodedImage], run_id: UUID
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


def image_ids(generations: Generations, store: PairStore) -> IdColumn:
    """The image of each generation; all must be in the store."""
    found, images = find_images(generations.keys, store)
    assert found.all()
    return IdColumn(images)


def _add_pairs(planned: Plan, store: PairStore, run_id: UUID) -> dict:
    summary = {"pairs": 0, "new_pairs": 0}
    for rows in chunks(_pair_rows(planned, store, run_id), PAIRS_AT_ONCE):
        summary["pairs"] += len(rows)
        summary["new_pairs"] += store.append_new("pairs", rows)
    store.try_ingest()
    return summary


def _pair_rows(planned: Plan, store: PairStore, run_id: UUID) -> Iterator[dict]:
    config = planned.config
    images = zip(planned.generations, image_ids(planned.generations, store), strict=True)
    for prompt, of_prompt in groupby(images, key=lambda pair: pair[0].prompt):
        candidates = [Candidate(image) for _, image in of_prompt]
        yield from pair_rows(prompt_id(prompt), candidates, config.pairing, config.seed, "generate", run_id).values()
