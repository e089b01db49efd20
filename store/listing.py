"""The runs, models, scorers and labelers of a store, as tables."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .pairstore import PairStore

if TYPE_CHECKING:
    import pyarrow as pa

# What each run added is counted in the tables; images that a run found there count for the run that made them. The pairs of a
# training run are those it trained on. A run that is under way, or was killed, has no duration.
_RUNS = """
    with added as (
        select run_id, 'images' as what, count(*) as n from generations group by run_id
        union all select run_id, 'pairs', count(*) from pairs group by run_id
        union all select run_id, 'scores', count(*) from scores group by run_id
        union all select run_id, 'labels', count(*) from labels group by run_id
    ),
    counts as (
        select
            run_id,
            max(n) filter (where what = 'images') as images,
            max(n) filter (where what = 'pairs') as pairs,
            max(n) filter (where what = 'scores') as scores,
            max(n) filter (where what = 'labels') as labels
        from added group by run_id
    ),
    named as (
        select
            *,
            array_to_string(from_json(config -> '$.models', '["varchar"]'), ', ') as models,
            array_to_string(from_json(config -> '$.labelers', '["varchar"]'), ', ') as labelers
        from runs
    )
    select
        r.kind,
        n.round,
        coalesce(r.config ->> '$.model', nullif(r.models, ''), r.config ->> '$.sweep') as model,
        coalesce(r.summary ->> '$.labeler', nullif(r.labelers, '')) as labeler,
        r.status,
        r.started,
        case when r.status <> 'running' then round(epoch(r.updated - r.started), 1) end as seconds,
        c.images,
        case r.kind when 'train' then try_cast(r.summary ->> '$.n_pairs' as bigint) else c.pairs end as pairs,
        c.scores,
        c.labels,
        try_cast(r.summary ->> '$.steps' as bigint) as steps,
        r.error,
        r.run_id
    from named r
    left join counts c using (run_id)
    left join run_rounds n using (run_id)
    order by r.started, r.run_id
"""
_TABLES = {
    "runs": _RUNS,
    "models": """select m.name, count(g.generation_id) as images, m.model_id
        from models m left join generations g using (model_id) group by all order by m.name""",
    "scorers": """select s.scorer, count(c.image_id) as scores
        from scorers s left join scores c using (scorer) group by all order by s.scorer""",
    "labelers": """from (
            select r.labeler, r.kind, count(l.pair_id) as labels, count(*) filter (where l.choice = 'tie') as ties
            from labelers r left join current_labels l using (labeler) group by all
        ) order by starts_with(labeler, 'eval:'), labeler""",
}


def listing(store: PairStore, names: Iterable[str] = tuple(_TABLES)) -> "dict[str, pa.Table]":
    """Tables by name: runs, models, scorers, labelers; or only some of them."""
    return {name: store.sql(_TABLES[name]) for name in names}


def for_terminal(runs: "pa.Table") -> "pa.Table":
    """The runs without ids, with durations as people read them, and without the columns that are empty."""
    import pyarrow as pa

    from ..core.text import duration

    texts = [None if seconds is None else duration(seconds) for seconds in runs["seconds"].to_pylist()]
    place = runs.schema.get_field_index("seconds")
    runs = runs.set_column(place, "duration", pa.array(texts, pa.string())).drop_columns(["run_id"])
    return runs.select([name for name in runs.schema.names if runs[name].null_count < len(runs) or name == "kind"])
