"""Score the images that have no score yet, once each, decoding ahead of the model."""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ..core.ids import canonical
from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import PairStore
from ..store.images import stored_at
from ..store.lazy_rows import LazyRows
from .auto_batch import AutoBatch
from .embedding_cache import EmbeddingCache
from .image_loader import Item, image_batches
from .scorers.dual_encoder import DualEncoderScorer
from .scorers.own_code import as_embeddings, as_scores, own_code
from .scorers.registry import Scorer, identity
from .scoring_pool import Workers, pooled_embeddings, pooled_prompts, pooled_scores

if TYPE_CHECKING:
    from PIL.Image import Image

CACHED_BATCH = 4096  # images whose embeddings are in the cache

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


def score_images(
    store: PairStore,
    scorer: Scorer,
    items: LazyRows[Item],
    *,
    batch_size: int,
    run_id: UUID,
    stop: StopSignal,
    workers: Workers | None = None,
) -> Counter[str]:
    """Score the items and put the scores into the store.

    Args:
        workers: of this scorer; None if this process scores.

    Returns:
        Counts: scored, not finite, unreadable images by reason, and truncated prompts, each counted when first read.
    """
    counts: Counter[str] = Counter()
    key = identity(scorer)
    config = {"temperature": getattr(scorer, "temperature", 1.0), "needs_prompt": scorer.needs_prompt}
    config |= {"sources": getattr(scorer, "sources", {})}
    with own_code(scorer):
        config_json = canonical(config)
    known = {name for (name,) in store.rows("select scorer from scorers")}
    if key not in known:
        store.append("scorers", [{"scorer": key, "name": scorer.name, "config": config_json}])
    if not items:
        store.ingest()
        return counts
    if isinstance(scorer, DualEncoderScorer):
        scored = _score_embeddings(store, scorer, items, batch_size, counts, workers, stop)
    elif workers is not None:
        scored = pooled_scores(workers, store.path, items, batch_size, counts, stop)
    else:
        scored = _score_images(store, scorer, items, batch_size, counts)
    with progress(len(items), f"scoring by {scorer.name}") as bar, closing(scored) as batches:
        for batch, scores in batches:
            counts["scored"] += len(batch)
            counts["not finite"] += int((~np.isfinite(scores)).sum())
            store.append("scores", [_row(key, item, score, run_id) for item, score in zip(batch, scores, strict=True)])
            bar.update(len(batch))
            stop.check(f"{counts['scored']} scores of {scorer.name} are in {store.path}")
    store.ingest()
    return counts


def _row(scorer: str, item: Item, score: float, run_id: UUID) -> dict:
    return {
        "scorer": scorer,
        "image_id": item.image_id,
        "prompt_id": item.prompt_id,
        "score": float(score),
        "run_id": run_id,
    }


Batches = Generator[tuple[list[Item], NDArray[np.float32]]]


def _score_images(
    store: PairStore, scorer: Scorer, items: LazyRows[Item], batch_size: int, counts: Counter[str]
) -> Batches:
    """Items with their scores, from the scorer's `score`."""
    auto_batch = AutoBatch(scorer.name)
    _count_truncated(scorer, list({item.prompt for item in items}), counts)

    def score(batch: Sequence[Item], images: Sequence) -> np.ndarray:
        return as_scores(scorer, scorer.score([item.prompt for item in batch], images), len(batch))

    for batch, images in image_batches(store.path, items, batch_size, counts):
        if batch:
            with own_code(scorer):
                scores = auto_batch(score, batch, images)
            yield batch, scores


def _count_truncated(scorer: Scorer, prompts: list[str], counts: Counter[str]) -> None:
    count = getattr(scorer, "n_truncated", None)
    if count is not None:
        with own_code(scorer):
            counts["truncated prompts"] += int(count(prompts))


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
    first: dict[bytes, int] = {}  # rows of items by image: millions of them, so neither items nor lists
    more: dict[bytes, list[int]] = {}
    for row, image in enumerate(chain.from_iterable(c.to_pylist() for c in items.table["image_id"].chunks)):
        if first.setdefault(image, row) != row:
            more.setdefault(image, []).append(row)

    def embedded(kind: Literal["images", "prompts"], inputs: Sequence) -> NDArray[np.float32]:
        embed = scorer.embed_images if kind == "images" else scorer.embed_prompts
        with own_code(scorer):
            return auto_batch[kind](lambda batch: as_embeddings(scorer, embed(batch), len(batch)), inputs)

    def items_of(ids: Sequence[UUID]) -> list[Item]:
        return list(items.select([row for image in ids for row in (first[image.bytes], *more.get(image.bytes, ()))]))

    def scored(ids: Sequence[UUID]) -> tuple[list[Item], NDArray[np.float32]]:
        batch = items_of(ids)
        image_embeddings, prompt_embeddings = images.get([item.image_id for item in batch]), None
        if scorer.needs_prompt:
            new = list({item.prompt_id: item.prompt for item in batch if item.prompt_id not in prompts}.items())
            if workers is not None:
                for prompt_ids, embeddings in pooled_prompts(workers, new, batch_size, counts, stop):
                    prompts.add(prompt_ids, embeddings)
                new = []
            for start in range(0, len(new), batch_size):
                prompt_ids, texts = zip(*new[start : start + batch_size], strict=True)
                _count_truncated(scorer, list(texts), counts)
                prompts.add(prompt_ids, embedded("prompts", list(texts)))
            prompt_embeddings = prompts.get([item.prompt_id for item in batch])
        with own_code(scorer):
            return batch, as_scores(scorer, scorer.score_embeddings(image_embeddings, prompt_embeddings), len(batch))

    def preprocess(image: "Image") -> Any:
        with own_code(scorer):  # an image it refuses is an ImageError, which passes
            return scorer.preprocess(image)

    try:
        cached = (image for image in map(_as_uuid, first) if image in images)
        while ids := list(islice(cached, CACHED_BATCH)):
            yield scored(ids)
        uncached = items.select(row for image, row in first.items() if _as_uuid(image) not in images)
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


def _as_uuid(data: bytes) -> UUID:
    return UUID(bytes=data)
