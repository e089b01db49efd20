"""Strategies that pair the images of one prompt: pure functions, one record per strategy.

To add a strategy, write its function and its record in STRATEGIES.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from uuid import UUID


@dataclass(frozen=True)
class Candidate:
    """An image that a prompt has."""

    image_id: UUID
    models: frozenset[UUID] = frozenset()
    """The models that generated it; empty if none is known."""
    score: float | None = None
    """In the scorer's own unit, finite; strategies that need scores are given no candidate without one."""


CandidatePair = tuple[Candidate, Candidate]


@dataclass(frozen=True, kw_only=True)
class Strategy:
    pair: Callable[[Sequence[Candidate], random.Random], list[CandidatePair]]
    """The pairs of the candidates, which come in the order of their generation."""
    summary: str
    """Which pairs, for help and docs."""
    by_preference: bool = False
    """Whether the pairs come in an order of which a limit keeps the first; else it keeps a random sample."""
    needs_scores: bool = False


def all_pairs(candidates: Sequence[Candidate], _: random.Random) -> list[CandidatePair]:
    return list(combinations(candidates, 2))


def adjacent(candidates: Sequence[Candidate], _: random.Random) -> list[CandidatePair]:
    return list(pairwise(candidates))


def at_random(candidates: Sequence[Candidate], chance: random.Random) -> list[CandidatePair]:
    shuffled = chance.sample(candidates, len(candidates))
    return list(zip(shuffled[::2], shuffled[1::2], strict=False))


def best_worst(candidates: Sequence[Candidate], _: random.Random) -> list[CandidatePair]:
    """Of equal scores, the image generated first. No pair if all scores are equal."""
    if not candidates:
        return []
    best, worst = max(candidates, key=_score), min(candidates, key=_score)
    return [(best, worst)] if _score(best) > _score(worst) else []


def close(candidates: Sequence[Candidate], _: random.Random) -> list[CandidatePair]:
    """The closest pair first; of equal differences, the pair with the lower scores."""
    return sorted(pairwise(sorted(candidates, key=_score)), key=lambda pair: _score(pair[1]) - _score(pair[0]))


def across_models(candidates: Sequence[Candidate], _: random.Random) -> list[CandidatePair]:
    """An image that both models generated does not show a difference between them, so it is not paired across them."""
    return [
        (first, second)
        for first, second in combinations(candidates, 2)
        if first.models and second.models and not first.models & second.models
    ]


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score


STRATEGIES = {
    "all": Strategy(pair=all_pairs, summary="every two images of a prompt"),
    "adjacent": Strategy(pair=adjacent, summary="each with the next, in the order of their generation"),
    "random": Strategy(pair=at_random, summary="each image in at most one pair", by_preference=True),
    "best-worst": Strategy(
        pair=best_worst,
        summary="the image with the highest score of --scorer and the one with the lowest",
        by_preference=True,
        needs_scores=True,
    ),
    "close": Strategy(
        pair=close,
        summary="each with the next by score of --scorer, the smallest difference first",
        by_preference=True,
        needs_scores=True,
    ),
    "across-models": Strategy(pair=across_models, summary="every two images of two different models"),
}


def pair_up(candidates: Sequence[Candidate], strategy: str, seed: str, limit: int | None = None) -> list[CandidatePair]:
    """The pairs of a prompt's candidates.

    Args:
        candidates: in the order of their generation.
        seed: decides the pairs of "random", and which pairs a limit keeps.
        limit: keep at most N pairs.
    """
    how = STRATEGIES[strategy]
    pairs = how.pair(candidates, random.Random(seed))
    if limit is None or len(pairs) <= limit:
        return pairs
    if how.by_preference:
        return pairs[:limit]
    kept = random.Random(f"{seed}:limit").sample(range(len(pairs)), limit)
    return [pairs[number] for number in sorted(kept)]


def pair_rows(
    prompt: UUID,
    candidates: Sequence[Candidate],
    strategy: str,
    seed: int,
    source: str,
    run_id: UUID | None = None,
    limit: int | None = None,
) -> dict[UUID, dict]:
    """The pairs of a prompt's candidates as rows of the table `pairs`, by pair id; each pair once."""
    from ..store.pairstore import new_pair  # DuckDB, which the names of the strategies can do without

    rows = {}
    for first, second in pair_up(candidates, strategy, f"{seed}:{prompt}", limit):
        row = new_pair(prompt, first.image_id, second.image_id, source, run_id)
        if row is not None:
            rows[row["pair_id"]] = row
    return rows
