"""Decide pairs by the scores in the store, and write the labels that are new."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..store import PairStore
from ..store.journal import TABLES
from .config import RelabelConfig
from .labelers import add_labeler
from .rules import Decisions, PairScores, decide
from .scorers.registry import Scorer, identity
from .selection import SELECTIONS

# One row per pair and scorer, with both scores and both ranks (1 is the best). Ranks are among the prompt's images in
# pairs of these sources, so that images generated for an evaluation do not change them. A pair is left out if a scorer
# has not scored both of its images.
_PAIR_SCORES = """
    with pair as (
        select pair_id, prompt_id, image_a, image_b from pairs where source in (select unnest($sources))
    ),
    ranked as (
        select
            scorer, prompt_id, image_id, score,
            rank() over same + (count(*) over ties - 1) / 2.0 as rank
        from scores s
        semi join (select prompt_id, unnest([image_a, image_b]) as image_id from pair) i
            on i.prompt_id = s.prompt_id and i.image_id = s.image_id
        where scorer in (select unnest($scorers))
        window
            same as (partition by scorer, prompt_id order by score desc),
            ties as (partition by scorer, prompt_id, score)
    )
    select p.pair_id, p.prompt_id, a.score as a, b.score as b, a.rank as rank_a, b.rank as rank_b
    from pair p
    join ranked a on a.prompt_id = p.prompt_id and a.image_id = p.image_a
    join ranked b on b.prompt_id = p.prompt_id and b.image_id = p.image_b and b.scorer = a.scorer
    qualify count(*) over (partition by p.pair_id) = len($scorers)
    order by p.pair_id, list_position($scorers, a.scorer)
"""

# Labels that differ from the current ones of the labeler, each with the next repetition.
_CHANGED = """
    select
        unhex(replace(f.pair_id, '-', '')) as pair_id, coalesce(c.revision + 1, 0)::integer as revision, f.choice, f.p_a, f.margin
    from fresh f
    left join (select * from current_labels where labeler = $labeler) c on c.pair_id = f.pair_id::uuid
    where c.pair_id is null or c.choice <> f.choice or c.p_a is distinct from f.p_a or c.margin is distinct from f.margin
    order by f.pair_id
"""

_LABELLED = """
    select count(*) from current_labels l
    semi join not_selected n on n.pair_id::uuid = l.pair_id
    where l.labeler = $labeler and l.choice <> 'skip'
"""


@dataclass(frozen=True)
class Written:
    choices: dict[str, int]
    """Number of pairs by what the rule says now: a, b, tie, undecided (a score is missing or not finite), not_selected
    (decided, but not labelled)."""
    new: int
    """Labels that are new or have changed."""
    no_longer_selected: int
    """Pairs not selected that keep the label of an earlier run."""


def write_labels(
    store: PairStore,
    labeler: str,
    config: RelabelConfig,
    scorers: Sequence[Scorer],
    sources: Sequence[str],
    run_id: UUID,
    temperatures: Sequence[float] | None = None,
) -> Written:
    """Decide every pair whose images all the scorers have scored, and write the selected labels that are new or have
    changed. A new labeler is written with its first labels.

    Args:
        temperatures: one per scorer; the scorers' own if not given.

    Raises:
        UsageError: if the labeler exists and decides in another way.
    """
    keys = [identity(scorer) for scorer in scorers]
    table = store.sql(_PAIR_SCORES, {"scorers": keys, "sources": list(sources)})
    ((n_pairs,),) = store.rows("select count(*) from pairs where source in (select unnest(?))", [list(sources)])
    ids, prompts = (table[name].to_numpy(zero_copy_only=False)[:: len(keys)] for name in ("pair_id", "prompt_id"))
    decisions = _decide(table, config, temperatures or [getattr(scorer, "temperature", 1.0) for scorer in scorers])
    decided = decisions.choice != ""
    selected = SELECTIONS[config.select].select(prompts, decisions)
    labels = pa.table(
        {
            "pair_id": ids[selected],
            "choice": decisions.choice[selected],
            "p_a": decisions.p_a[selected].astype(np.float32),
            "margin": decisions.margin[selected].astype(np.float32),
        }
    )
    new = _changed(store, labeler, labels, run_id)
    if new.num_rows:
        add_labeler(store, labeler, config, scorers)
        store.append("labels", new)
    store.try_ingest()
    counts = Counter(decisions.choice[selected].tolist())
    choices = {choice: counts[choice] for choice in ("a", "b", "tie")}
    choices |= {"undecided": n_pairs - int(decided.sum()), "not_selected": int((decided & ~selected).sum())}
    return Written(choices, new.num_rows, _labelled(store, labeler, ids[decided & ~selected]))


def _decide(table: pa.Table, config: RelabelConfig, temperatures: Sequence[float]) -> Decisions:
    a, b, rank_a, rank_b = (
        table[name].to_numpy().astype(np.float64).reshape(-1, len(temperatures))
        for name in ("a", "b", "rank_a", "rank_b")
    )
    scores = PairScores(
        a=a,
        b=b,
        rank_a=rank_a,
        rank_b=rank_b,
        temperatures=np.asarray(temperatures, np.float64),
        weights=np.array([config.scorer_weights.get(name, 1.0) for name in config.scorers]),
        tie_band=config.tie_band,
        tie_quantile=config.tie_quantile,
    )
    return decide(config.rule, scores)


def _labelled(store: PairStore, labeler: str, pairs: NDArray[Any]) -> int:
    """How many of the pairs have a label of the labeler."""
    if not len(pairs):
        return 0
    with store.session() as connection:
        connection.register("not_selected", pa.table({"pair_id": pairs}))
        ((n,),) = connection.sql(_LABELLED, params={"labeler": labeler}).fetchall()
    return n


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
        "notes": pa.nulls(n, pa.string()),
    }
    schema = TABLES["labels"]
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)
