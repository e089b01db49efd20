"""What `browse` shows, read from the store: pairs with what was said of them, runs, and what can be asked for."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from ...store import PairStore
from .filters import PAGE, Filters

_PAIRS = """
    select p.pair_id, q.prompt, q.tags, q.split, p.source, p.prompt_id, p.image_a, p.image_b, a.width, a.height, b.width, b.height
    from pairs p
    join prompts q using (prompt_id)
    join images a on a.image_id = p.image_a
    join images b on b.image_id = p.image_b
    where p.pair_id in (select unnest($pairs))
"""
_LABELS = """
    select pair_id, labeler, choice, p_a, margin from current_labels
    where pair_id in (select unnest($pairs)) and not (choice = 'skip' and shown_left is null)
    order by pair_id, labeler
"""
_SCORES = """
    select pair_id, scorer, score_a, score_b from pair_scores
    where pair_id in (select unnest($pairs))
    order by pair_id, scorer
"""
_MADE = """
    select g.image_id, m.name, g.seed, g.image_index, g.sampling
    from generations g join models m using (model_id)
    where g.prompt_id = $prompt and g.image_id in ($a, $b)
    order by g.image_id, m.name, g.seed, g.image_index
"""
_HISTORY = """
    select labeler, revision, choice, p_a, margin, shown_left, response_ms, choice = 'skip' and shown_left is null as taken_back
    from labels where pair_id = $pair order by labeler, revision
"""
_RUNS = """
    select run_id, kind, status, started, updated, config, summary, error, json_extract_string(summary, '$.report')
    from runs order by started desc limit 500
"""
MOST_TAGS = 200


@dataclass(frozen=True)
class Seen:
    """A pair with everything said of it."""

    pair: UUID
    prompt: str
    tags: str
    split: str
    source: str
    prompt_id: UUID
    images: tuple[UUID, UUID]
    """a and b."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """Width and height in pixels."""
    labels: list[tuple[str, str, float | None, float | None]] = field(default_factory=list)
    """Labeler, choice, p_a, margin."""
    scores: list[tuple[str, float, float]] = field(default_factory=list)
    """Scorer, score of a, score of b."""


def page_of_pairs(store: PairStore, filters: Filters) -> tuple[list[Seen], int]:
    """One page, in order, and how many pairs there are in all."""
    query, values = filters.query()
    ordered, _ = filters.ordered()
    with store.session() as connection:
        ((total,),) = connection.execute(f"select count(*) {query}", values).fetchall()
        pairs = [pair for (pair,) in connection.execute(f"select p.pair_id {ordered}", values).fetchall()]
    found = {one.pair: one for one in seen(store, pairs)}
    return [found[pair] for pair in pairs if pair in found], total


def n_pages(total: int) -> int:
    return max(1, -(-total // PAGE))


def seen(store: PairStore, pairs: Sequence[UUID]) -> list[Seen]:
    """Pairs by their ids."""
    values = {"pairs": list(pairs)}
    labels, scores = defaultdict(list), defaultdict(list)
    with store.session() as connection:
        rows = connection.execute(_PAIRS, values).fetchall()
        for pair, *label in connection.execute(_LABELS, values).fetchall():
            labels[pair].append(tuple(label))
        for pair, *score in connection.execute(_SCORES, values).fetchall():
            scores[pair].append(tuple(score))
    return [
        Seen(pair, prompt, tags, split, source, of, (a, b), ((wa, ha), (wb, hb)), labels[pair], scores[pair])
        for pair, prompt, tags, split, source, of, a, b, wa, ha, wb, hb in rows
    ]


def history(store: PairStore, pair: UUID) -> list[dict[str, Any]]:
    """Every label of a pair, also those that later ones took the place of."""
    names = ("labeler", "revision", "choice", "p_a", "margin", "shown_left", "response_ms", "taken_back")
    return [dict(zip(names, row, strict=True)) for row in store.rows(_HISTORY, {"pair": pair})]


def made(store: PairStore, one: Seen) -> dict[UUID, list[tuple[str, int, int, str]]]:
    """How each picture came to be: model, seed, index, settings."""
    found = defaultdict(list)
    values = {"prompt": one.prompt_id, "a": one.images[0], "b": one.images[1]}
    for image, *how in store.rows(_MADE, values):
        found[image].append(tuple(how))
    return found


def siblings(store: PairStore, one: Seen) -> list[UUID]:
    """Other pairs of the same prompt."""
    query = "select pair_id from pairs where prompt_id = ? and pair_id <> ? order by pair_id limit 24"
    return [pair for (pair,) in store.rows(query, [one.prompt_id, one.pair])]


def runs(store: PairStore) -> list[dict[str, Any]]:
    """The latest first."""
    names = ("run_id", "kind", "status", "started", "updated", "config", "summary", "error", "report")
    return [dict(zip(names, row, strict=True)) for row in store.rows(_RUNS)]


def report_folder(store: PairStore, run: UUID) -> Path | None:
    """Of an evaluation's report; None where there is none."""
    query = "select json_extract_string(summary, '$.report') from runs where run_id = ? and kind = 'eval'"
    for (named,) in store.rows(query, [run]):
        if named:
            # written relative to where the evaluation ran, or below the store
            places = (Path(named), store.path / "reports" / Path(named).name)
            return next((place for place in places if (place / "report.html").is_file()), None)
    return None


def choices(store: PairStore) -> dict[str, list]:
    """What the filters can be set to."""
    with store.session() as connection:
        labelers = connection.execute("select labeler from labelers order by labeler").fetchall()
        models = connection.execute("select model_id, name from models order by name, model_id").fetchall()
        tags = connection.execute("select distinct tags from prompts order by tags limit 5000").fetchall()
    named = {f"{key}={value}" for (text,) in tags for key, value in json.loads(text).items()}
    return {
        "labelers": [(name, name) for (name,) in labelers],
        "models": [(model.hex, name) for model, name in models],
        "tags": sorted(named)[:MOST_TAGS],
    }
