"""Score the pictures that have no score yet, once each, decoding ahead of the model."""

import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from ..store import ImageError, PairStore, PrefloopError, load_image
from ..store.ids import canonical
from ..store.runs import StopSignal, progress
from .registry import Scorer, identity

if TYPE_CHECKING:
    from PIL.Image import Image

DECODERS = 2
BATCHES_AHEAD = 3


@dataclass(frozen=True)
class Item:
    """A picture to be scored for a prompt."""

    prompt_id: UUID
    image_id: UUID
    prompt: str
    path: str
    """Below the store's folder."""


UNSCORED = """
    select distinct w.prompt_id, w.image_id, q.prompt, f.path
    from ({wanted}) w
    join prompts q using (prompt_id)
    join image_files f using (image_id)
    anti join (select prompt_id, image_id from scores where scorer = $scorer) s
        on s.prompt_id = w.prompt_id and s.image_id = w.image_id
    order by w.prompt_id, w.image_id
"""
IN_PAIRS = """
    select prompt_id, unnest([image_a, image_b]) as image_id from pairs where source in (select unnest($sources))
"""


def unscored(store: PairStore, scorer: str, sources: Sequence[str]) -> list[Item]:
    """The pictures in pairs of these sources that a scorer (name@revision) has not scored; pictures of a prompt lie
    together, so that its text is embedded once."""
    query = UNSCORED.format(wanted=IN_PAIRS)
    return [Item(*row) for row in store.rows(query, {"scorer": scorer, "sources": list(sources)})]


def unscored_images(store: PairStore, scorer: str, images: Sequence[tuple[UUID, UUID]]) -> list[Item]:
    """Those of the (prompt id, image id) that a scorer (name@revision) has not scored."""
    wanted = "select unnest($prompts::uuid[]) as prompt_id, unnest($images::uuid[]) as image_id"
    asked = {"scorer": scorer, "prompts": [p for p, _ in images], "images": [i for _, i in images]}
    return [Item(*row) for row in store.rows(UNSCORED.format(wanted=wanted), asked)]


def score_images(
    store: PairStore, scorer: Scorer, items: list[Item], *, batch_size: int, run_id: UUID, stop: StopSignal
) -> Counter[str]:
    """Score the items and put the scores into the store.

    Returns:
        Counts: scored, not finite, and unreadable pictures by reason.
    """
    counts: Counter[str] = Counter()
    key = identity(scorer)
    config = {"temperature": getattr(scorer, "temperature", 1.0), "needs_prompt": scorer.needs_prompt}
    config |= {"sources": getattr(scorer, "sources", {})}
    known = {name for (name,) in store.rows("select scorer from scorers")}
    if key not in known:
        store.append("scorers", [{"scorer": key, "name": scorer.name, "config": canonical(config)}])
    if not items:
        store.absorb()
        return counts
    with progress(len(items), f"scoring by {scorer.name}") as bar:
        for batch, images in _decoded(store.path, items, batch_size, counts):
            if batch:
                scores = _scored(scorer, batch, images)
                counts["scored"] += len(batch)
                counts["not finite"] += int((~np.isfinite(scores)).sum())
                store.append("scores", [_row(key, *one, run_id) for one in zip(batch, scores, strict=True)])
            bar.update(len(batch))
            stop.check(f"{counts['scored']} scores of {scorer.name} are in {store.path}")
    store.absorb()
    return counts


def _row(scorer: str, item: Item, score: float, run_id: UUID) -> dict:
    return {
        "scorer": scorer,
        "image_id": item.image_id,
        "prompt_id": item.prompt_id,
        "score": float(score),
        "run_id": run_id,
    }


def _scored(scorer: Scorer, batch: list[Item], images: "list[Image]") -> np.ndarray:
    """(B,) float32; the batch is halved where memory runs out."""
    try:
        scores = np.asarray(scorer.score([item.prompt for item in batch], images), dtype=np.float32)
    except (MemoryError, RuntimeError) as error:
        if (
            "out of memory" not in str(error).lower()
            and "allocate memory" not in str(error)
            and not isinstance(error, MemoryError)
        ):
            raise
        if len(batch) == 1:
            raise PrefloopError(
                f"memory runs out when {scorer.name} scores one image; use a smaller model or device cpu"
            ) from error
        half = len(batch) // 2
        print(f"memory ran out; scoring {half} at a time", file=sys.stderr)
        return np.concatenate(
            [_scored(scorer, batch[:half], images[:half]), _scored(scorer, batch[half:], images[half:])]
        )
    if scores.shape != (len(batch),):
        raise PrefloopError(f"{scorer.name} gave scores of shape {scores.shape} for {len(batch)} images")
    return scores


def _decoded(
    folder: Path, items: list[Item], batch_size: int, counts: Counter[str]
) -> "Iterator[tuple[list[Item], list[Image]]]":
    """Batches with their pictures, decoded by threads while the model works; unreadable ones are counted and left out."""

    def load(item: Item) -> "Image | ImageError":
        try:
            return load_image(folder / item.path, item.image_id)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(DECODERS) as pool:
        rest = iter([items[at : at + batch_size] for at in range(0, len(items), batch_size)])
        ahead: deque[tuple[list[Item], list[Future]]] = deque()
        while True:
            for batch in islice(rest, BATCHES_AHEAD - len(ahead)):
                ahead.append((batch, [pool.submit(load, item) for item in batch]))
            if not ahead:
                return
            batch, futures = ahead.popleft()
            good, images = [], []
            for item, future in zip(batch, futures, strict=True):
                result = future.result()
                if isinstance(result, ImageError):
                    counts[f"image {result.reason}"] += 1
                else:
                    good.append(item)
                    images.append(result)
            yield good, images
