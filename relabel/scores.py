"""Score the pictures that have no score yet, once each, decoding ahead of the model."""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ..core.ids import canonical
from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import PairStore
from ..store.images import stored_at
from ..store.lazy_rows import LazyRows
from .auto_batch import WithinMemory
from .embedding_cache import EmbeddingCache
from .image_loader import Item, decoded
from .scorers.dual_encoder import Towers
from .scorers.own_code import as_embeddings, as_scores, own_code
from .scorers.registry import Scorer, identity

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT_AT_ONCE = 4096  # pictures whose embeddings are there

UNSCORED = """
    select w.prompt_id, w.image_id, f.format
    from ({wanted}) w
    join images f using (image_id)
    semi join prompts q on q.prompt_id = w.prompt_id
    anti join (select prompt_id, image_id from scores where scorer = $scorer) s
        on s.prompt_id = w.prompt_id and s.image_id = w.image_id
    order by w.prompt_id, w.image_id
"""
IN_PAIRS = """
    select prompt_id, image_a as image_id from pairs where source in (select unnest($sources))
    union
    select prompt_id, image_b from pairs where source in (select unnest($sources))
"""


def unscored(store: PairStore, scorer: str, sources: Sequence[str]) -> LazyRows[Item]:
    """The pictures in pairs of these sources that a scorer (name@revision) has not scored; pictures of a prompt lie
    together, so that its text is embedded once."""
    return _items(store, IN_PAIRS, {"scorer": scorer, "sources": list(sources)})


def unscored_images(store: PairStore, scorer: str, images: Sequence[tuple[UUID, UUID]]) -> LazyRows[Item]:
    """Those of the (prompt id, image id) that a scorer (name@revision) has not scored."""
    wanted = "select distinct unnest($prompts::uuid[]) as prompt_id, unnest($images::uuid[]) as image_id"
    asked = {"scorer": scorer, "prompts": [p for p, _ in images], "images": [i for _, i in images]}
    return _items(store, wanted, asked)


def _items(store: PairStore, wanted: str, asked: dict) -> LazyRows[Item]:
    rows = store.sql(UNSCORED.format(wanted=wanted), asked, as_ids=True)
    texts = store.prompts_by_id(rows["prompt_id"])

    def item(prompt: bytes, image: bytes, extension: str) -> Item:
        identity = UUID(bytes=image)
        return Item(UUID(bytes=prompt), identity, texts[prompt], stored_at(identity, extension))

    return LazyRows(rows, item)


def score_images(
    store: PairStore, scorer: Scorer, items: LazyRows[Item], *, batch_size: int, run_id: UUID, stop: StopSignal
) -> Counter[str]:
    """Score the items and put the scores into the store.

    Returns:
        Counts: scored, not finite, unreadable pictures by reason, and prompts that were read for the first time and cut.
    """
    counts: Counter[str] = Counter()
    key = identity(scorer)
    config = {"temperature": getattr(scorer, "temperature", 1.0), "needs_prompt": scorer.needs_prompt}
    config |= {"sources": getattr(scorer, "sources", {})}
    with own_code(scorer):
        described = canonical(config)
    known = {name for (name,) in store.rows("select scorer from scorers")}
    if key not in known:
        store.append("scorers", [{"scorer": key, "name": scorer.name, "config": described}])
    if not items:
        store.ingest()
        return counts
    if isinstance(scorer, Towers):
        found = _by_embeddings(store, scorer, items, batch_size, counts)
    else:
        found = _by_pictures(store, scorer, items, batch_size, counts)
    with progress(len(items), f"scoring by {scorer.name}") as bar, closing(found) as batches:
        for batch, scores in batches:
            counts["scored"] += len(batch)
            counts["not finite"] += int((~np.isfinite(scores)).sum())
            store.append("scores", [_row(key, *one, run_id) for one in zip(batch, scores, strict=True)])
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


def _by_pictures(
    store: PairStore, scorer: Scorer, items: LazyRows[Item], batch_size: int, bad: Counter[str]
) -> Batches:
    """Items with their scores, from the scorer's `score`."""
    within_memory = WithinMemory(scorer.name)
    _count_truncated(scorer, list({item.prompt for item in items}), bad)

    def score(batch: Sequence[Item], images: Sequence) -> np.ndarray:
        return as_scores(scorer, scorer.score([item.prompt for item in batch], images), len(batch))

    for batch, images in decoded(store.path, items, batch_size, bad):
        if batch:
            with own_code(scorer):
                scores = within_memory(score, batch, images)
            yield batch, scores


def _count_truncated(scorer: Scorer, prompts: list[str], counts: Counter[str]) -> None:
    count = getattr(scorer, "n_truncated", None)
    with own_code(scorer):
        cut = 0 if count is None else int(count(prompts))
    if cut:
        counts[f"prompts longer than {scorer.name} reads, cut"] += cut


def _by_embeddings(
    store: PairStore, scorer: Towers, items: LazyRows[Item], batch_size: int, bad: Counter[str]
) -> Batches:
    """Items with their scores, from embeddings: those of the cache first, then the others, each picture once."""
    folder = store.path / "cache" / "embeddings" / scorer.backbone
    images, prompts = EmbeddingCache(folder / "images"), EmbeddingCache(folder / "prompts")
    within_memory = {"images": WithinMemory(scorer.name), "prompts": WithinMemory(scorer.name)}
    first: dict[bytes, int] = {}  # rows of items by image: millions of them, so neither items nor lists
    more: dict[bytes, list[int]] = {}
    for row, image in enumerate(chain.from_iterable(c.to_pylist() for c in items.table["image_id"].chunks)):
        if first.setdefault(image, row) != row:
            more.setdefault(image, []).append(row)

    def embedded(kind: str, what: Sequence) -> NDArray[np.float32]:
        embed = scorer.embed_images if kind == "images" else scorer.embed_prompts
        with own_code(scorer):
            return within_memory[kind](lambda some: as_embeddings(scorer, embed(some), len(some)), what)

    def scored(ids: Sequence[UUID]) -> tuple[list[Item], NDArray[np.float32]]:
        rows = [row for identity in ids for row in (first[identity.bytes], *more.get(identity.bytes, ()))]
        wanted = list(items.select(rows))
        image_embeddings, texts = images.get([item.image_id for item in wanted]), None
        if scorer.needs_prompt:
            new = {item.prompt_id: item.prompt for item in wanted if item.prompt_id not in prompts}
            for at in range(0, len(new), batch_size):
                some = dict(list(new.items())[at : at + batch_size])
                _count_truncated(scorer, list(some.values()), bad)
                prompts.add(list(some), embedded("prompts", list(some.values())))
            texts = prompts.get([item.prompt_id for item in wanted])
        with own_code(scorer):
            return wanted, as_scores(scorer, scorer.score_embeddings(image_embeddings, texts), len(wanted))

    def preprocess(image: "Image") -> Any:
        with own_code(scorer):  # an image it refuses is an ImageError, which passes
            return scorer.preprocess(image)

    try:
        ids = (UUID(bytes=image) for image in first)
        kept = (identity for identity in ids if identity in images)
        while some := list(islice(kept, KEPT_AT_ONCE)):
            yield scored(some)
        rest = items.select(row for image, row in first.items() if UUID(bytes=image) not in images)
        for batch, pixels in decoded(store.path, rest, batch_size, bad, preprocess):
            if batch:
                ids = [item.image_id for item in batch]
                images.add(ids, embedded("images", pixels))
                yield scored(ids)
    finally:
        images.flush()
        prompts.flush()
