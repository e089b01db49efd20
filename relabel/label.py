"""From scores in the store to labels in the store."""

import json
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import numpy as np
import pyarrow as pa

from ..store import BadDataError, PairStore, UsageError
from ..store.ids import canonical
from ..store.journal import TABLES
from ..store.runs import StopSignal, run
from .config import RelabelConfig, Rule
from .registry import Scorer, identity, load_scorers
from .rules import decide, decide_by_rank
from .scoring import score_images, unscored

TRAINING_SOURCES = ("generate", "import")

# One row for each pair and scorer, with both scores and both ranks (1 is the best) among the prompt's pictures in
# pairs of these sources, so that pictures drawn for an evaluation do not move them.
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
    select w.pair_id, a.scorer, a.score as a, b.score as b, a.rank as rank_a, b.rank as rank_b
    from wanted w
    join ranked a on a.prompt_id = w.prompt_id and a.image_id = w.image_a
    join ranked b on b.prompt_id = w.prompt_id and b.image_id = w.image_b and b.scorer = a.scorer
    order by w.pair_id, list_position($scorers, a.scorer)
"""


def relabel(config: RelabelConfig, store: PairStore) -> dict:
    """Score what is unscored, then label every pair by the rule.

    Returns:
        Counts: labeler, pairs, scored (a count for each scorer), labels (by choice), new_labels, bad (by reason).

    Raises:
        UsageError: where a scorer may only judge, or the labeler exists with another rule.
        BadDataError: where more images than `max_bad` are unreadable; what could be scored is kept and labelled.
    """
    scorers = load_scorers(config.scorers, config.weights, config.device)
    for scorer in scorers:
        if getattr(scorer, "judge_only", False):
            raise UsageError(
                f"{scorer.name} only judges: labels by it would leave no judge that made none; "
                f"give `--scorer {scorer.name}` to `prefloop eval` instead"
            )
    labeler = config.labeler or default_labeler(config.rule, scorers)
    with (
        store.stage_lock("relabel", "-".join(sorted(scorer.name for scorer in scorers))),
        StopSignal().listening() as stop,
    ):
        ((n_pairs,),) = store.rows("select count(*) from pairs where source <> 'eval'")
        if not n_pairs:
            raise UsageError(f"there are no pairs in {store.path}; `prefloop generate --store {store.path}` makes some")
        describe_labeler(store, labeler, config.rule, scorers, config.tie_band)
        with run(store, "relabel", config) as this:
            counts: Counter[str] = Counter()
            scored, not_finite = {}, 0
            for scorer in scorers:
                items = unscored(store, identity(scorer), TRAINING_SOURCES)
                found = score_images(store, scorer, items, batch_size=config.batch_size, run_id=this.run_id, stop=stop)
                scored[scorer.name] = found.pop("scored", 0)
                not_finite += found.pop("not finite", 0)
                counts |= found  # the larger of the two: each scorer meets the same bad pictures
            counts += Counter({"not finite": not_finite})
            choices, new = write_labels(
                store, labeler, config.rule, scorers, config.tie_band, TRAINING_SOURCES, this.run_id
            )
            this.summary |= {
                "labeler": labeler,
                "pairs": n_pairs,
                "scored": scored,
                "labels": choices,
                "new_labels": new,
                "bad": dict(counts),
            }
            _refuse_bad(counts, store, config.max_bad)
    return this.summary


def _refuse_bad(counts: Counter[str], store: PairStore, max_bad: float) -> None:
    bad = sum(count for reason, count in counts.items() if reason.startswith("image "))
    ((n_images,),) = store.rows("select count(*) from images")
    if bad > max_bad * n_images:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        raise BadDataError(
            f"{bad} of {n_images} images cannot be used ({reasons}), more than --max-bad {max_bad:g}; "
            f"`prefloop store check --store {store.path}` names them"
        )


def default_labeler(rule: Rule, scorers: Sequence[Scorer]) -> str:
    names = [scorer.name for scorer in scorers]
    return names[0] if rule == "single" else f"{rule}:{'+'.join(names)}"


def describe_labeler(store: PairStore, labeler: str, rule: Rule, scorers: Sequence[Scorer], tie_band: float) -> None:
    """Enter a labeler; one of that name that decides otherwise is refused, so that a name means one thing."""
    config = {"rule": rule, "scorers": [identity(scorer) for scorer in scorers], "tie_band": tie_band}
    known = store.rows("select config from labelers where labeler = ?", [labeler])
    if not known:
        kind = "ai" if len(scorers) == 1 else "ensemble"
        store.append("labelers", [{"labeler": labeler, "kind": kind, "config": canonical(config)}])
        store.absorb()
    elif json.loads(known[0][0]) != config:
        raise UsageError(
            f"the labeler {labeler!r} is there and decides by {known[0][0]}, not by {canonical(config)}; "
            "give --labeler another name"
        )


def write_labels(
    store: PairStore,
    labeler: str,
    rule: Rule,
    scorers: Sequence[Scorer],
    tie_band: float,
    sources: Sequence[str],
    run_id: UUID,
) -> tuple[dict[str, int], int]:
    """Decide every pair whose pictures all the scorers have scored, and write what is new or has changed.

    Returns:
        How many pairs got each choice ("undecided" where a score is missing or not finite), and the new labels.
    """
    keys = [identity(scorer) for scorer in scorers]
    table = store.sql(_PAIR_SCORES, {"scorers": keys, "sources": list(sources)})
    ((n_pairs,),) = store.rows("select count(*) from pairs where source in (select unnest(?))", [list(sources)])
    of_pair = _complete(table, len(keys))
    ids = of_pair["pair_id"][:: len(keys)] if len(keys) else of_pair["pair_id"]
    a, b, rank_a, rank_b = (of_pair[name].reshape(-1, len(keys)) for name in ("a", "b", "rank_a", "rank_b"))
    temperatures = np.array([getattr(scorer, "temperature", 1.0) for scorer in scorers])
    if rule == "mean-rank":
        decided = decide_by_rank(a, b, rank_a, rank_b, temperatures, tie_band)
    else:
        decided = decide(rule, a, b, temperatures, tie_band)
    known = decided.choice != ""
    labels = pa.table(
        {
            "pair_id": ids[known],
            "choice": decided.choice[known],
            "p_a": decided.p_a[known].astype(np.float32),
            "margin": decided.margin[known].astype(np.float32),
        }
    )
    new = _changed(store, labeler, labels, run_id)
    store.append("labels", new)
    store.absorb()
    choices = Counter(decided.choice[known].tolist())
    return {
        "a": choices["a"],
        "b": choices["b"],
        "tie": choices["tie"],
        "undecided": n_pairs - int(known.sum()),
    }, new.num_rows


def _complete(table: pa.Table, n_scorers: int) -> dict[str, np.ndarray]:
    """Columns of the pairs that every scorer has scored; the rows of a pair lie together."""
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.schema.names}
    if table.num_rows == 0:
        return columns
    _, first, counts = np.unique(columns["pair_id"], return_index=True, return_counts=True)
    whole = np.zeros(table.num_rows, bool)
    for start in first[counts == n_scorers]:
        whole[start : start + n_scorers] = True
    return {name: column[whole] for name, column in columns.items()}


def _changed(store: PairStore, labeler: str, labels: pa.Table, run_id: UUID) -> pa.Table:
    """The labels that are not the current ones of the labeler, each with the next repetition."""
    with store.session() as connection:
        connection.register("fresh", labels)
        changed = connection.sql(
            """
            select f.pair_id, coalesce(c.rep + 1, 0)::integer as rep, f.choice, f.p_a, f.margin
            from fresh f
            left join (select * from current_labels where labeler = $labeler) c on c.pair_id = f.pair_id::uuid
            where c.pair_id is null or c.choice <> f.choice or c.p_a is distinct from f.p_a
                or c.margin is distinct from f.margin
            order by f.pair_id
            """,
            params={"labeler": labeler},
        ).to_arrow_table()
    n = changed.num_rows
    ids = pa.array([UUID(value).bytes for value in changed["pair_id"].to_pylist()], pa.uuid())
    columns = {name: changed[name] for name in ("rep", "choice", "p_a", "margin")}
    columns |= {
        "pair_id": ids,
        "labeler": pa.array([labeler] * n, pa.string()),
        "shown_left": pa.nulls(n, pa.string()),
        "ms": pa.nulls(n, pa.int32()),
        "run_id": pa.array([run_id.bytes] * n, pa.uuid()),
    }
    schema = TABLES["labels"]
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)
