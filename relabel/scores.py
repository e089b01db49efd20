"""Score the images that have no score yet, once each, decoding ahead of the model."""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..core.id_columns import IdColumn, as_keys, id_array
from ..core.ids import canonical
from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import PairStore, part_writer
from ..store.images import stored_at
from ..store.journal import TABLES
from ..store.lazy_rows import LazyRows
from ..store.part_writer import PartWriter
from .auto_batch import AutoBatch
from .embedding_cache import EmbeddingCache
from .image_loader import Item, image_batches
from .image_rows import ImageRows
from .judges.answer_scores import score_answers
from .judges.vlm import PointJudge
from .scorers.calls import columns_of, n_truncated, needs_tags, parse_tags, refuse_without_tags, scores_and_columns
from .scorers.dual_encoder import DualEncoderScorer
from .scorers.own_code import as_embeddings, as_scores, own_code, prints_to_stderr
from .scorers.registry import Scorer, identity, refuse_changed
from .scoring_pool import Workers, pooled_embeddings, pooled_prompts, pooled_scores

if TYPE_CHECKING:
    from PIL.Image import Image

CACHED_BATCH = 4096  # images whose embeddings are in the cache
COLUMN_OF = "column_of"
"""In the config of a name@revision whose numbers are not scores but a further column of another's."""

_UNSCORED = """
    select i.prompt_id, i.image_id, f.format
    from ({images}) i
    join images f using (image_id)
    semi join prompts q on q.prompt_id = i.prompt_id
    anti join (select prompt_id, image_id from scores where scorer = $scorer) s
        on s.prompt_id = i.prompt_id and s.image_id = i.image_id
    order by i.prompt_id, i.image_id
"""
IN_PAIRS = """
    select prompt_id, image_a as image_id from pairs where source in (select unnest($sources))
    union
    select prompt_id, image_b from pairs where source in (select unnest($sources))
"""


def unscored(store: PairStore, scorer: str, sources: Sequence[str]) -> LazyRows[Item]:
    """The images in pairs of these sources that a scorer (name@revision) has not scored, sorted by prompt, so that each
    prompt is embedded once."""
    return _items(store, IN_PAIRS, {"scorer": scorer, "sources": list(sources)})


def unscored_images(store: PairStore, scorer: str, images: Sequence[tuple[UUID, UUID]]) -> LazyRows[Item]:
    """The (prompt id, image id) that a scorer (name@revision) has not scored."""
    query = "select distinct unnest($prompts::uuid[]) as prompt_id, unnest($images::uuid[]) as image_id"
    parameters = {"scorer": scorer, "prompts": [p for p, _ in images], "images": [i for _, i in images]}
    return _items(store, query, parameters)


def _items(store: PairStore, images: str, parameters: dict) -> LazyRows[Item]:
    rows = store.sql(_UNSCORED.format(images=images), parameters, as_ids=True)
    prompts = store.prompts_by_id(rows["prompt_id"])

    def item(prompt: bytes, image: bytes, extension: str) -> Item:
        identity = UUID(bytes=image)
        return Item(UUID(bytes=prompt), identity, prompts[prompt], stored_at(identity, extension))

    return LazyRows(rows, item)


@prints_to_stderr()
def score_images(
    store: PairStore,
    scorer: Scorer,
    items: LazyRows[Item],
    *,
    batch_size: int,
    run_id: UUID,
    stop: StopSignal,
    max_unreadable: float = 1.0,
    workers: Workers | None = None,
) -> Counter[str]:
    """Score the items and put the scores into the store.

    Args:
        max_unreadable: fraction of a judge's answers that may be unreadable; once more are, the others are not asked for.
        workers: of this scorer; None if this process scores.

    Returns:
        Counts: scored, not finite, images without an answer, unreadable images by reason, images left out because the scorer
        needs tags and their prompt has none, and truncated prompts, each counted when first read.

    Raises:
        UsageError: if the scorer needs tags, has no scores yet, and none of the prompts has any.
        PrefloopError: if its code fails, or its revision has changed meanwhile.
    """
    counts: Counter[str] = Counter()
    key = identity(scorer)
    columns = [f"{scorer.name}-{column}@{scorer.revision}" for column in columns_of(scorer)]
    config = {"temperature": getattr(scorer, "temperature", 1.0), "needs_prompt": scorer.needs_prompt}
    config |= {"sources": getattr(scorer, "sources", {})}
    with own_code(scorer):
        configs = {key: canonical(config)} | {column: canonical(config | {COLUMN_OF: key}) for column in columns}
    known = {name for (name,) in store.rows("select scorer from scorers")}
    new = [
        {"scorer": name, "name": name.split("@")[0], "config": configs[name]} for name in configs if name not in known
    ]
    if new:
        store.append("scorers", new)
    if not items:
        store.ingest()
        return counts
    if isinstance(scorer, PointJudge):
        scored = score_answers(store, scorer, items, batch_size, counts, run_id, stop, max_unreadable)
    elif isinstance(scorer, DualEncoderScorer) and not needs_tags(scorer):
        scored = _score_embeddings(store, scorer, items, batch_size, counts, workers, stop)
    else:
        tags: Mapping[bytes, str] = {}
        if needs_tags(scorer):
            every = items
            items, tags = _tagged(store, scorer, every)
            counts["images whose prompt has no tags"] += len(every) - len(items)
        if workers is not None:
            scored = pooled_scores(workers, store.path, items, tags, batch_size, counts, stop)
        else:
            scored = _score_images(store, scorer, items, batch_size, counts, tags)
    asked = isinstance(scorer, PointJudge)
    # an answer may have been paid for, and is asked for again if its score is lost
    rows_at_once = 1 if asked else part_writer.ROWS
    with (
        progress(len(items), f"scoring by {scorer.name}") as bar,
        PartWriter(store, "scores", rows_at_once) as writer,
        closing(scored) as batches,
    ):
        for batch, scores in batches:
            if not counts["scored"]:
                refuse_changed(scorer, key)
            by_name = dict(zip(configs, scores.reshape(len(batch), -1).T, strict=True))
            counts["scored"] += len(batch)
            counts["not finite"] += int((~np.isfinite(by_name[key])).sum())
            # of all columns in one part: an image has either all of them or none
            writer.add(pa.concat_tables([_rows(name, batch, values, run_id) for name, values in by_name.items()]))
            bar.update(len(batch))
            if stop.requested and not asked:  # a judge hands on what it has been answered before it ends
                break
    stop.check(f"{counts['scored']} scores of {scorer.name} are in {store.path}")
    store.ingest()
    return counts


def _rows(scorer: str, batch: Sequence[Item], scores: NDArray[np.float32], run_id: UUID) -> pa.Table:
    n, schema = len(batch), TABLES["scores"]
    columns = {
        "scorer": pa.repeat(pa.scalar(scorer), n),
        "image_id": id_array(as_keys(item.image_id for item in batch)),
        "prompt_id": id_array(as_keys(item.prompt_id for item in batch)),
        "score": pa.array(scores, pa.float32()),
        "run_id": pa.repeat(pa.scalar(run_id.bytes, pa.binary(16)), n),
    }
    return pa.table({name: columns[name].cast(schema.field(name).type) for name in schema.names}, schema=schema)


def _tagged(store: PairStore, scorer: Scorer, items: LazyRows[Item]) -> tuple[LazyRows[Item], dict[bytes, str]]:
    """The items whose prompt has tags, and the tags in JSON by the prompt's id."""
    column = items.table["prompt_id"]
    every = store.prompts_by_id(column, "tags")
    tags = {prompt: text for prompt, text in every.items() if parse_tags(text)}
    key = identity(scorer)
    if not tags and not store.rows("select 1 from scores where scorer = ? limit 1", [key]):
        refuse_without_tags([scorer], [], str(store.path))
    return items.select(row for row, prompt in enumerate(column.to_pylist()) if prompt in tags), tags


Batches = Generator[tuple[list[Item], NDArray[np.float32]]]
"""Items with their scores (B,), or (B, 1 + columns)."""


def _score_images(
    store: PairStore,
    scorer: Any,
    items: LazyRows[Item],
    batch_size: int,
    counts: Counter[str],
    tags: Mapping[bytes, str],
) -> Batches:
    """Items with their scores, from the scorer's `score`, or with its further columns from `score_columns`."""
    auto_batch = AutoBatch(scorer.name)
    with own_code(scorer):
        counts["truncated prompts"] += n_truncated(scorer, list({item.prompt for item in items}))

    def score(batch: Sequence[Item], images: Sequence) -> np.ndarray:
        batch_tags = [tags.get(item.prompt_id.bytes) for item in batch]
        return scores_and_columns(scorer, [item.prompt for item in batch], images, batch_tags)

    for batch, images in image_batches(store.path, items, batch_size, counts):
        if batch:
            with own_code(scorer):
                scores = auto_batch(score, batch, images)
            yield batch, scores


def _score_embeddings(
    store: PairStore,
    scorer: DualEncoderScorer,
    items: LazyRows[Item],
    batch_size: int,
    counts: Counter[str],
    workers: Workers | None,
    stop: StopSignal,
) -> Batches:
    """Items with their scores, from embeddings: cached ones first, then the others, each image once."""
    folder = store.path / "cache" / "embeddings" / scorer.backbone
    images, prompts = EmbeddingCache(folder / "images"), EmbeddingCache(folder / "prompts")
    auto_batch = {"images": AutoBatch(scorer.name), "prompts": AutoBatch(scorer.name)}
    rows = ImageRows(items.table["image_id"])

    def embedded(kind: Literal["images", "prompts"], inputs: Sequence) -> NDArray[np.float32]:
        embed = scorer.embed_images if kind == "images" else scorer.embed_prompts
        with own_code(scorer):
            return auto_batch[kind](lambda batch: as_embeddings(scorer, embed(batch), len(batch)), inputs)

    def items_of(ids: Sequence[UUID]) -> list[Item]:
        return list(items.select(rows.of(ids)))

    def scored(ids: Sequence[UUID]) -> tuple[list[Item], NDArray[np.float32]]:
        batch = items_of(ids)
        image_embeddings, prompt_embeddings = images.get([item.image_id for item in batch]), None
        if scorer.needs_prompt:
            known = prompts.contains(as_keys(item.prompt_id for item in batch)).tolist()
            missing = (item for item, is_known in zip(batch, known, strict=True) if not is_known)
            new = list({item.prompt_id: item.prompt for item in missing}.items())
            if workers is not None:
                for prompt_ids, embeddings in pooled_prompts(workers, new, batch_size, counts, stop):
                    prompts.add(prompt_ids, embeddings)
                new = []
            for start in range(0, len(new), batch_size):
                prompt_ids, texts = zip(*new[start : start + batch_size], strict=True)
                with own_code(scorer):
                    counts["truncated prompts"] += n_truncated(scorer, list(texts))
                prompts.add(prompt_ids, embedded("prompts", list(texts)))
            prompt_embeddings = prompts.get([item.prompt_id for item in batch])
        with own_code(scorer):
            return batch, as_scores(scorer, scorer.score_embeddings(image_embeddings, prompt_embeddings), len(batch))

    def preprocess(image: "Image") -> Any:
        with own_code(scorer):  # an image it refuses is an ImageError, which passes
            return scorer.preprocess(image)

    try:
        chunks = (rows.images[at : at + CACHED_BATCH] for at in range(0, len(rows.images), CACHED_BATCH))
        cached = (image for chunk in chunks for image in IdColumn(chunk[images.contains(chunk)]))
        while ids := list(islice(cached, CACHED_BATCH)):
            yield scored(ids)
        uncached = items.select(rows.first[~images.contains(rows.images)])
        if workers is not None:
            of_prompts = prompts if scorer.needs_prompt else None
            for ids in pooled_embeddings(
                workers, store.path, uncached, items_of, images, of_prompts, batch_size, counts, stop
            ):
                yield scored(ids)
            return
        for batch, pixels in image_batches(store.path, uncached, batch_size, counts, preprocess):
            if batch:
                ids = [item.image_id for item in batch]
                images.add(ids, embedded("images", pixels))
                yield scored(ids)
    finally:
        images.flush()
        prompts.flush()
