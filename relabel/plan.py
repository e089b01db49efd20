"""What `relabel` would do: how many pictures are unscored, and what scoring them will take."""

import json
from dataclasses import dataclass

from ..store import PairStore
from .config import RelabelConfig
from .embedding_cache import EmbeddingCache
from .image_loader import BATCHES_AHEAD
from .pairwise import Judge, unjudged
from .scorers.dual_encoder import Towers
from .scorers.registry import Scorer, identity, load_scorers
from .scores import unscored
from .stage import TRAINING_SOURCES

PIXELS = 224 * 224 * 3 * 4  # bytes of a preprocessed picture
_SPEEDS = """
    select summary from runs where kind = 'relabel' and status = 'done' and summary is not null order by started desc
"""


@dataclass(frozen=True)
class Planned:
    scorer: str
    unscored: int
    """Pictures with a prompt that have no score; pairs, for a judge of pairs."""
    embedded: int
    """Those of them whose embedding is kept: they need no forward pass."""
    batches: int
    """Forward passes over pictures."""
    seconds: float | None
    """By the last run in this store that scored; None where there was none."""
    memory: int
    """Bytes of the weights' files and the batches that are decoded ahead; activations come on top."""


def plan(config: RelabelConfig, store: PairStore) -> list[Planned]:
    """For each scorer; nothing is loaded and nothing is written."""
    scorers = load_scorers(config.scorers, config.checkpoints, config.device, config.dtype)
    return [_planned(config, store, scorer) for scorer in scorers]


def _planned(config: RelabelConfig, store: PairStore, scorer: Scorer) -> Planned:
    if isinstance(scorer, Judge):
        pairs = len(unjudged(store, config.labeler or scorer.name, TRAINING_SOURCES))
        return Planned(scorer.name, pairs, 0, -(-pairs // config.batch_size), None, 0)
    items = unscored(store, identity(scorer), TRAINING_SOURCES)
    embedded, forward = 0, len(items)
    if isinstance(scorer, Towers):
        kept = EmbeddingCache(store.path / "cache" / "embeddings" / scorer.backbone / "images")
        embedded = sum(item.image_id in kept for item in items)
        forward = len({item.image_id for item in items if item.image_id not in kept})
    each = _seconds_each(store, scorer.name)
    return Planned(
        scorer=scorer.name,
        unscored=len(items),
        embedded=embedded,
        batches=-(-forward // config.batch_size),
        seconds=0.0 if not forward else None if each is None else each * forward,
        memory=_weights_bytes(scorer, config.dtype) + PIXELS * config.batch_size * BATCHES_AHEAD,
    )


def _seconds_each(store: PairStore, name: str) -> float | None:
    """Seconds a picture took in the last run that scored some."""
    for (summary,) in store.rows(_SPEEDS):
        told = json.loads(summary)
        scored, seconds = told.get("scored", {}).get(name, 0), told.get("seconds", {}).get(name)
        if scored and seconds:
            return seconds / scored
    return None


def _weights_bytes(scorer: Scorer, dtype: str) -> int:
    """Of the files a scorer has named; in half precision half of them."""
    size = sum(path.stat().st_size for path in getattr(scorer, "files", ()))
    return size if dtype == "float32" else size // 2
