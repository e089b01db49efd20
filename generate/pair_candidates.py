"""The images that `pair` pairs, as SQL selects them from the store."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from uuid import UUID

import pyarrow as pa

from ..core.errors import UsageError
from ..core.validate import unknown
from ..store import PairStore
from ..store.condition import condition
from ..store.importers.rows import UNKNOWN_MODEL
from ..store.query import ask
from .pair_config import PairConfig
from .pairing import STRATEGIES, Candidate

# A row per image that a model generated for a prompt, and one for each image that is only in pairs. The condition is nested
# below the rest, and is one expression, so that it can only leave images out.
_CANDIDATES = """
    with image_prompts as (
        select prompt_id, image_id, nullif(model_id, $unknown::uuid) as model_id, sampling, seed, image_index, run_id
        from generations
        union all
        select prompt_id, image_id, null, null, null, null, null
        from (select distinct prompt_id, unnest([image_a, image_b]) as image_id from pairs)
        anti join generations using (prompt_id, image_id)
    ),
    evaluated as (
        select prompt_id from pairs where source = 'eval'
        union
        select prompt_id from evaluation_images
        union
        select prompt_id from generations join runs using (run_id) where kind = 'eval'  -- stopped before it was complete
    )
    select
        c.prompt_id, c.image_id, c.model_id, {score} as score,
        c.prompt_id in (select prompt_id from evaluated) as is_evaluated
    from (
        select * from (
            select
                q.prompt, q.prompt_id, q.split, q.tags, p.image_id, m.name as model, p.model_id, p.sampling, p.seed,
                p.image_index, p.run_id, r.round, i.width, i.height, i.format, i.n_bytes
            from image_prompts p
            join prompts q using (prompt_id)
            join images i using (image_id)
            left join models m on m.model_id = p.model_id
            left join run_rounds r on r.run_id = p.run_id
        ) candidates
        where {where}
    ) c
    left join runs u on u.run_id = c.run_id
    {scores}
    where not $of_models or c.model in (select unnest($models))
    order by c.prompt_id, u.started nulls first, c.seed, c.image_index, c.image_id, c.model_id
"""
_SCORES = """left join (select prompt_id, image_id, score from scores where scorer = $scorer and isfinite(score)) s
        on s.prompt_id = c.prompt_id and s.image_id = c.image_id"""


@dataclass(frozen=True)
class Selection:
    """The images that a config selects, and how many of them cannot be paired."""

    rows: pa.Table
    """Of the images that can be paired, by prompt in the order of their generation; an image of several models has a row for
    each."""
    summary: dict[str, int]
    """images and prompts that can be paired; images that have no score; images and prompts of an evaluation, left out."""

    def of_prompts(self) -> Iterator[tuple[UUID, list[Candidate]]]:
        """Each prompt with its candidates."""
        columns = [self.rows[name].to_pylist() for name in ("prompt_id", "image_id", "model_id", "score")]
        for prompt, rows in groupby(zip(*columns, strict=True), key=itemgetter(0)):
            models: dict[UUID, set[UUID]] = {}
            scores: dict[UUID, float | None] = {}
            for _, image, model, score in rows:
                models.setdefault(image, set()).update([] if model is None else [model])
                scores[image] = score
            yield prompt, [Candidate(image, frozenset(known), scores[image]) for image, known in models.items()]


def select_images(store: PairStore, config: PairConfig) -> Selection:
    """The images that can be paired.

    Raises:
        UsageError: if a model or the scorer is unknown, the condition is not one expression over the columns, or no image
            is left.
    """
    known = [name for (name,) in store.rows("select distinct name from models order by all")]
    for name in config.models:
        if name not in known:
            raise unknown("model", name, known)
    parameters = {"unknown": str(UNKNOWN_MODEL), "of_models": bool(config.models), "models": list(config.models)}
    score, scores = "null::float", ""
    if config.scorer is not None:
        score, scores = "s.score", _SCORES
        parameters["scorer"] = find_scorer(store, config.scorer)
    where = condition(config.where) if config.where else "true"
    query = _CANDIDATES.format(where=where, score=score, scores=scores)
    try:
        rows = ask(store, query, 3600, parameters, as_ids=True)
    except UsageError as error:
        raise UsageError(f"--where {config.where!r} cannot be used: {error}") from error
    if not rows.num_rows:
        raise UsageError(_nothing(store, config))
    return _without_excluded(rows, config)


def find_scorer(store: PairStore, name: str) -> str:
    """The name@revision that a scorer's name means: the only one with scores in the store.

    Raises:
        UsageError: if it has no scores, or scores of several revisions.
    """
    stored = [scorer for (scorer,) in store.rows("select distinct scorer from scores order by all")]
    if name in stored:
        return name
    found = [scorer for scorer in stored if scorer.startswith(f"{name}@")]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"there are scores by several revisions of {name}; give --scorer {' or '.join(found)}")
    if stored:
        raise unknown("scorer", name, stored)
    raise UsageError(
        f"there are no scores by {name} in {store.path}; `prefloop relabel --scorer {name} --store {store.path}` scores the "
        "images of pairs, and --pairing adjacent pairs every image"
    )


def _without_excluded(rows: pa.Table, config: PairConfig) -> Selection:
    evaluated, no_score = [], []
    kept = []
    needs_scores = STRATEGIES[config.pairing].needs_scores
    columns = [rows[name].to_pylist() for name in ("prompt_id", "image_id", "score", "is_evaluated")]
    for number, (prompt, image, score, is_evaluated) in enumerate(zip(*columns, strict=True)):
        if is_evaluated and not config.include_eval:
            evaluated.append((prompt, image))
        elif needs_scores and score is None:
            no_score.append((prompt, image))
        else:
            kept.append((number, prompt, image))
    summary = {
        "images": len({(prompt, image) for _, prompt, image in kept}),
        "prompts": len({prompt for _, prompt, _ in kept}),
        "unscored_images": len(set(no_score)),
        "eval_images": len(set(evaluated)),
        "eval_prompts": len({prompt for prompt, _ in evaluated}),
    }
    return Selection(rows.take(pa.array([number for number, _, _ in kept], pa.int64())), summary)


def _nothing(store: PairStore, config: PairConfig) -> str:
    if config.where or config.models:
        options = " and ".join(["--where"] * bool(config.where) + ["--model"] * bool(config.models))
        return f"{options} select{'' if ' and ' in options else 's'} no images in {store.path}; relax {options}"
    return f"there are no images in {store.path}; `prefloop generate --store {store.path}` or `prefloop store import` adds some"
