"""Queries of `browse`: pairs with their scores, labels and origin, and the values of the filters."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from ...store import PairStore
from ...store.evaluations import evaluations
from .filters import PAGE, Filters
from .notes import Notes

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
_GENERATIONS = """
    select g.image_id, m.name, g.seed, g.image_index, g.sampling
    from generations g join models m using (model_id)
    where g.prompt_id = $prompt and g.image_id in ($a, $b)
    order by g.image_id, m.name, g.seed, g.image_index
"""
_HISTORY = """
    select labeler, revision, choice, p_a, margin, shown_left, response_ms, choice = 'skip' and shown_left is null as taken_back, notes
    from labels where pair_id = $pair order by labeler, revision
"""
# In an evaluation several models may have generated the same image.
_MODELS = """
    select p.pair_id, g.image_id, list(distinct m.name order by m.name)
    from pairs p
    join generations g on g.prompt_id = p.prompt_id and (g.image_id = p.image_a or g.image_id = p.image_b)
    join models m using (model_id)
    where p.pair_id in (select unnest($pairs))
    group by all
"""
MAX_TAGS = 200


@dataclass(frozen=True)
class PairDetails:
    """A pair with its labels and scores."""

    pair_id: UUID
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
    models: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Of a pair of an evaluation: the models that generated a and b."""

    def choice_of(self, labeler: str) -> str:
        """a, b, tie or skip; empty without a label."""
        return next((choice for name, choice, *_ in self.labels if name == labeler), "")


def page_of_pairs(store: PairStore, filters: Filters) -> tuple[list[PairDetails], int]:
    """The pairs of one page, in order, and the number of pairs on all pages."""
    query, values = filters.sql()
    page_query, _ = filters.page_sql()
    with store.session() as connection:
        ((total,),) = connection.execute(f"select count(*) {query}", values).fetchall()
        pair_ids = [pair_id for (pair_id,) in connection.execute(f"select p.pair_id {page_query}", values).fetchall()]
    details = {pair.pair_id: pair for pair in pair_details(store, pair_ids)}
    return [details[pair_id] for pair_id in pair_ids if pair_id in details], total


def n_pages(total: int) -> int:
    return max(1, -(-total // PAGE))


def pair_details(store: PairStore, pair_ids: Sequence[UUID]) -> list[PairDetails]:
    """Pairs by their ids, in any order."""
    values = {"pairs": list(pair_ids)}
    labels, scores, models = defaultdict(list), defaultdict(list), {}
    with store.session() as connection:
        rows = connection.execute(_PAIRS, values).fetchall()
        for pair, *label in connection.execute(_LABELS, values).fetchall():
            labels[pair].append(tuple(label))
        for pair, *score in connection.execute(_SCORES, values).fetchall():
            scores[pair].append(tuple(score))
        if of_evaluations := [pair for pair, _, _, _, source, *_ in rows if source == "eval"]:
            for pair, image, names in connection.execute(_MODELS, {"pairs": of_evaluations}).fetchall():
                models[pair, image] = tuple(names)
    return [
        PairDetails(
            pair,
            prompt,
            tags,
            split,
            source,
            prompt_id,
            (a, b),
            ((wa, ha), (wb, hb)),
            labels[pair],
            scores[pair],
            (models.get((pair, a), ()), models.get((pair, b), ())),
        )
        for pair, prompt, tags, split, source, prompt_id, a, b, wa, ha, wb, hb in rows
    ]


def label_history(store: PairStore, pair: UUID) -> list[dict[str, Any]]:
    """Every label of a pair, including those that later ones replaced."""
    names = ("labeler", "revision", "choice", "p_a", "margin", "shown_left", "response_ms", "taken_back")
    return [
        dict(zip(names, row, strict=True)) | {"notes": Notes.from_json(notes)}
        for *row, notes in store.rows(_HISTORY, {"pair": pair})
    ]


def generations(store: PairStore, pair: PairDetails) -> dict[UUID, list[tuple[str, int, int, str]]]:
    """How each image was generated: model, seed, index, and the settings that have a value, as text."""
    by_image = defaultdict(list)
    values = {"prompt": pair.prompt_id, "a": pair.images[0], "b": pair.images[1]}
    for image, model, seed, index, settings in store.rows(_GENERATIONS, values):
        shown = ", ".join(f"{key}={value}" for key, value in json.loads(settings).items() if value not in (None, ""))
        by_image[image].append((model, seed, index, shown))
    return by_image


def siblings(store: PairStore, pair: PairDetails) -> list[UUID]:
    """Other pairs of the same prompt."""
    query = "select pair_id from pairs where prompt_id = ? and pair_id <> ? order by pair_id limit 24"
    return [sibling for (sibling,) in store.rows(query, [pair.prompt_id, pair.pair_id])]


def filter_values(store: PairStore) -> dict[str, list]:
    """The values that the filters can be set to."""
    with store.session() as connection:
        labelers = connection.execute("select labeler from labelers order by labeler").fetchall()
        models = connection.execute("select model_id, name from models order by name, model_id").fetchall()
        tags = connection.execute("select distinct tags from prompts order by tags limit 5000").fetchall()
    key_values = {f"{key}={value}" for (text,) in tags for key, value in json.loads(text).items()}
    return {
        "labelers": [(name, name) for (name,) in labelers],
        "models": [(model.hex, name) for model, name in models],
        "evaluations": [(identity.hex, name) for identity, name in evaluations(store)],
        "tags": sorted(key_values)[:MAX_TAGS],
    }


def names_of_ids(store: PairStore, filters: Filters, values: Mapping[str, list]) -> dict[str, str]:
    """What the ids in the filters are called.

    Args:
        values: from filter_values.
    """
    names = {identity: name for kind in ("models", "evaluations") for identity, name in values[kind]}
    if filters.run:
        for kind, started in store.rows("select kind, started from runs where run_id = ?", [UUID(filters.run)]):
            names[filters.run] = f"{kind} of {started:%Y-%m-%d %H:%M} UTC"
    return names


def drops(store: PairStore, filters: Filters) -> list[int]:
    """If nothing matches: how many pairs do without one of the filters, for each that is set."""
    counts = []
    with store.session() as connection:
        for fewer in filters.without_each():
            query, values = fewer.sql()
            ((n,),) = connection.execute(f"select count(*) {query}", values).fetchall()
            counts.append(n)
    return counts
