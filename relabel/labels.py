"""Decide pairs by the scores that are in the store, and write the labels that are new."""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import numpy as np
import pyarrow as pa

from ..store import PairStore
from ..store.journal import TABLES
from .config import RelabelConfig
from .rules import Decisions, decide, decide_by_rank, widest
from .scorers.registry import Scorer, identity

# One row for each pair and scorer, with both scores and both ranks (1 is the best) among the prompt's pictures in
# pairs of these sources, so that pictures drawn for an evaluation do not move them. Pairs that a scorer has not scored
# wholly are not in it.
_PAIR_SCORES = """
    with wanted as (
        select pair_id, prompt_id, image_a, image_b from pairs where source in (select unnest($sources))
    ),
    ranked as (
        select
            scorer, prompt_id, image_id, score,
            rank() over same + (count(*) over ties - 1) / 2.0 as rank
        from scores s
        semi join (select prompt_id, unnest([image_a, image_b]) as image_id from wanted) i
            on i.prompt_id = s.prompt_id and i.image_id = s.image_id
        where scorer in (select unnest($scorers))
        window
            same as (partition by scorer, prompt_id order by score desc),
            ties as (partition by scorer, prompt_id, score)
    )
    select w.pair_id, w.prompt_id, a.score as a, b.score as b, a.rank as rank_a, b.rank as rank_b
    from wanted w
    join ranked a on a.prompt_id = w.prompt_id and a.image_id = w.image_a
    join ranked b on b.prompt_id = w.prompt_id and b.image_id = w.image_b and b.scorer = a.scorer
    qualify count(*) over (partition by w.pair_id) = len($scorers)
    order by w.pair_id, list_position($scorers, a.scorer)
"""

# Labels that are not the current ones of the labeler, each with the next repetition. Nothing is skipped that was never
# labelled.
_CHANGED = """
    select
        unhex(replace(f.pair_id, '-', '')) as pair_id, coalesce(c.revision + 1, 0)::integer as revision, f.choice, f.p_a, f.margin
    from fresh f
    left join (select * from current_labels where labeler = $labeler) c on c.pair_id = f.pair_id::uuid
    where (c.pair_id is null and f.choice <> 'skip')
        or (c.pair_id is not null and (c.choice <> f.choice or c.p_a is distinct from f.p_a
            or c.margin is distinct from f.margin))
    order by f.pair_id
"""


def write_labels(
    store: PairStore,
    labeler: str,
    how: RelabelConfig,
    scorers: Sequence[Scorer],
    sources: Sequence[str],
    run_id: UUID,
    temperatures: Sequence[float] | None = None,
) -> tuple[dict[str, int], int]:
    """Decide every pair whose pictures all the scorers have scored, and write what is new or has changed.

    Args:
        temperatures: of the scorers; their own if not given.

    Returns:
        How many pairs got each choice ("undecided" where a score is missing or not finite), and the new labels.
    """
    keys = [identity(scorer) for scorer in scorers]
    table = store.sql(_PAIR_SCORES, {"scorers": keys, "sources": list(sources)})
    ((n_pairs,),) = store.rows("select count(*) from pairs where source in (select unnest(?))", [list(sources)])
    ids, prompts = (table[name].to_numpy(zero_copy_only=False)[:: len(keys)] for name in ("pair_id", "prompt_id"))
    decided = _decided(table, how, temperatures or [getattr(scorer, "temperature", 1.0) for scorer in scorers])
    known = decided.choice != ""
    kept = known if how.select == "all" else widest(prompts, decided)
    labels = pa.table(
        {
            "pair_id": ids[known],
            "choice": np.where(kept, decided.choice, "skip")[known],
            "p_a": pa.array(decided.p_a[known].astype(np.float32), mask=~kept[known]),
            "margin": pa.array(decided.margin[known].astype(np.float32), mask=~kept[known]),
        }
    )
    new = _changed(store, labeler, labels, run_id)
    store.append("labels", new)
    store.try_ingest()
    choices = Counter(decided.choice[kept].tolist())
    undecided = n_pairs - int(known.sum())
    return {"a": choices["a"], "b": choices["b"], "tie": choices["tie"], "undecided": undecided}, new.num_rows


def _decided(table: pa.Table, how: RelabelConfig, temperatures: Sequence[float]) -> Decisions:
    a, b, rank_a, rank_b = (
        table[name].to_numpy().astype(np.float64).reshape(-1, len(temperatures))
        for name in ("a", "b", "rank_a", "rank_b")
    )
    heat = np.asarray(temperatures, np.float64)
    if how.rule == "mean-rank":
        return decide_by_rank(a, b, rank_a, rank_b, heat, how.tie_band, how.tie_quantile)
    shares = np.array([how.scorer_weights.get(name, 1.0) for name in how.scorers]) if how.rule == "weighted" else None
    return decide(how.rule, a, b, heat, how.tie_band, how.tie_quantile, shares)


def _changed(store: PairStore, labeler: str, labels: pa.Table, run_id: UUID) -> pa.Table:
    with store.session() as connection:
        connection.register("fresh", labels)
        changed = connection.sql(_CHANGED, params={"labeler": labeler}).to_arrow_table()
    n = changed.num_rows
    ids = changed["pair_id"].combine_chunks().cast(pa.binary(16))
    columns = {name: changed[name] for name in ("revision", "choice", "p_a", "margin")}
    columns |= {
        "pair_id": pa.ExtensionArray.from_storage(pa.uuid(), ids),
        "labeler": pa.array([labeler] * n, pa.string()),
        "shown_left": pa.nulls(n, pa.string()),
        "response_ms": pa.nulls(n, pa.int32()),
        "run_id": pa.array([run_id.bytes] * n, pa.uuid()),
    }
    schema = TABLES["labels"]
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)
