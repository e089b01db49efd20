"""What `relabel` would do: how many images are unscored, and what scoring them will take."""

import json
from dataclasses import dataclass

import numpy as np

from ..core.id_columns import keys_of
from ..store import PairStore
from .config import RelabelConfig
from .embedding_cache import EmbeddingCache
from .image_loader import BATCHES_AHEAD
from .judges.answer_scores import tags_of
from .judges.request_limits import limit_requests
from .judges.vlm import ChatJudge, PointJudge
from .pairwise import PairwiseJudge, unjudged
from .scorers.dual_encoder import DualEncoderScorer
from .scorers.registry import Scorer, identity, load_scorers
from .scores import unscored
from .stage import TRAINING_SOURCES

IMAGE_BYTES = 224 * 224 * 3 * 4  # of a preprocessed image
_SUMMARIES = """
    select summary from runs where kind = 'relabel' and status = 'done' and summary is not null order by started desc
"""


@dataclass(frozen=True)
class ScoringPlan:
    scorer: str
    unscored: int
    """Images with a prompt that have no score; for a pairwise judge, pairs that have no label."""
    embedded: int
    """Unscored images whose embedding is cached: they need no forward pass."""
    batches: int
    """Forward passes over images."""
    seconds: float | None
    """From the speed of the last run in this store that scored; None without one."""
    memory: int
    """Bytes of the weights and of the batches decoded ahead, and for hpsv3 of a layer's activations; the others' activations
    come on top."""
    requests: int | None = None
    """That a judge behind an endpoint would send, without retries; None for other scorers."""


def plan(config: RelabelConfig, store: PairStore) -> list[ScoringPlan]:
    """One plan per scorer. Loads no weights and writes nothing."""
    scorers = load_scorers(config.scorers, config.checkpoints, config.device, config.dtype)
    limit_requests(scorers, config)
    return [_plan(config, store, scorer) for scorer in scorers]


def _plan(config: RelabelConfig, store: PairStore, scorer: Scorer) -> ScoringPlan:
    if isinstance(scorer, PairwiseJudge):
        pairs = len(unjudged(store, config.labeler or scorer.name, TRAINING_SOURCES))
        requests = pairs * scorer.n_requests() if isinstance(scorer, ChatJudge) else None
        return ScoringPlan(scorer.name, pairs, 0, -(-pairs // config.batch_size), None, 0, requests)
    items = unscored(store, identity(scorer), TRAINING_SOURCES)
    embedded, forward = 0, len(items)
    if isinstance(scorer, PointJudge):
        tags = tags_of(store, items) if scorer.needs_tags else {}
        requests = sum(scorer.n_requests(tags.get(item.prompt_id)) for item in items)
        return ScoringPlan(scorer.name, len(items), 0, -(-len(items) // config.batch_size), None, 0, requests)
    if isinstance(scorer, DualEncoderScorer):
        cached = EmbeddingCache(store.path / "cache" / "embeddings" / scorer.backbone / "images")
        images = keys_of(items.table["image_id"])
        is_cached = cached.contains(images)
        embedded, forward = int(is_cached.sum()), len(np.unique(images[~is_cached]))
    per_image = _seconds_per_image(store, scorer.name)
    return ScoringPlan(
        scorer=scorer.name,
        unscored=len(items),
        embedded=embedded,
        batches=-(-forward // config.batch_size),
        seconds=0.0 if not forward else None if per_image is None else per_image * forward,
        memory=_model_bytes(scorer, config.batch_size) + IMAGE_BYTES * config.batch_size * BATCHES_AHEAD,
    )


def _seconds_per_image(store: PairStore, name: str) -> float | None:
    """Seconds per image in the last run that scored any."""
    for (row,) in store.rows(_SUMMARIES):
        summary = json.loads(row)
        scored, seconds = summary.get("scored", {}).get(name, 0), summary.get("seconds", {}).get(name)
        if scored and seconds:
            return seconds / scored
    return None


def _model_bytes(scorer: Scorer, batch_size: int) -> int:
    """What a scorer says it takes, or else the size of its files; half of it in half precision."""
    memory = getattr(scorer, "memory", None)
    if memory is not None:
        return int(memory(batch_size))
    size = sum(path.stat().st_size for path in getattr(scorer, "files", ()))
    return size if getattr(scorer, "dtype", "float32") == "float32" else size // 2
