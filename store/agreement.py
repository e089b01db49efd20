"""How often labelers agree on a pair, and how far that exceeds chance, with intervals over prompts."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.agreement import kappa
from ..core.stats import Estimate, Floats, estimate_share, interval_text, prompt_means
from .labelers import HUMAN
from .pairstore import PairStore

if TYPE_CHECKING:
    import pyarrow as pa

_CHOICES = ("a", "b", "tie")

# The choices of every two labelers on the same pair, as places in _CHOICES. A person who was shown a pair again is compared with
# their previous answer. An answer that was undone does not count: its next revision has no side shown. Evaluation labelers,
# which label the pairs of evaluations by one scorer each, come last.
_JUDGED = """
    with shown as (
        select *, lead(shown_left is null) over same as undone
        from labels where labeler in (select labeler from labels where revision > 0 and shown_left is not null)
        window same as (partition by pair_id, labeler order by revision)
    ),
    repeated as (
        select pair_id, labeler, choice, lag(choice) over (partition by pair_id, labeler order by revision) as before
        from shown where shown_left is not null and not coalesce(undone, false) and choice <> 'skip'
    ),
    judged as (
        select x.pair_id, x.labeler as labeler, y.labeler as other, x.choice as choice, y.choice as other_choice
        from current_labels x
        join current_labels y on x.pair_id = y.pair_id
            and (starts_with(x.labeler, 'eval:'), x.labeler) < (starts_with(y.labeler, 'eval:'), y.labeler)
        where x.choice <> 'skip' and y.choice <> 'skip'
        union all
        select pair_id, labeler, labeler, before, choice from repeated where before is not null
    )
    select
        j.labeler,
        j.other,
        r.round,
        p.prompt_id,
        (list_position($choices, j.choice) - 1)::bigint as choice,
        (list_position($choices, j.other_choice) - 1)::bigint as other_choice
    from judged j
    join pairs p using (pair_id)
    left join run_rounds r on $by_round and r.run_id = p.run_id
    where $evaluations or not (starts_with(j.labeler, 'eval:') or starts_with(j.other, 'eval:'))
    order by
        starts_with(j.labeler, 'eval:') or starts_with(j.other, 'eval:'), j.labeler, starts_with(j.other, 'eval:'), j.other,
        r.round nulls last, p.pair_id
"""


def agreement(store: PairStore, *, evaluations: bool = False, by_round: bool = False) -> "pa.Table":
    """How often each two labelers with labels on the same pairs agree; a person with themselves, on pairs shown again.

    Every prompt weighs the same. Intervals are 95 % over prompts, null below ten.

    Args:
        evaluations: also the labelers of evaluations, eval:…, in rows after the others.
        by_round: a row for each round of a loop; pairs of no round have a row of their own, in which it is null.

    Returns:
        labeler, other, round (if asked for), n (pairs), n_prompts; agree (fraction of pairs with the same choice: a, b or tie)
        and kappa (Cohen's, null if both always make the same one choice), each with _low and _high; then the same over the
        pairs that both decided: n_decided, agree_decided, kappa_decided.
    """
    import pyarrow as pa

    parameters = {"choices": list(_CHOICES), "evaluations": evaluations, "by_round": by_round}
    judged = store.sql(_JUDGED, parameters)
    keys = ["labeler", "other", "round"] if by_round else ["labeler", "other"]
    rows = [key | _numbers(part) for key, part in _parts(judged, keys)]
    types = {"labeler": pa.string(), "other": pa.string(), "round": pa.int32()}
    columns = keys + list(_numbers(judged.slice(0, 0)))
    fields = [
        pa.field(name, types.get(name) or (pa.int64() if name.startswith("n") else pa.float64())) for name in columns
    ]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def _parts(judged: "pa.Table", keys: list[str]) -> "list[tuple[dict[str, Any], pa.Table]]":
    """The rows of each key, which follow one another."""
    if not judged.num_rows:
        return []
    codes = [judged[key].combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy() for key in keys]
    changes = np.flatnonzero(np.diff(np.stack(codes), axis=1).any(axis=0)) + 1
    starts, ends = [0, *changes.tolist()], [*changes.tolist(), judged.num_rows]
    return [
        ({key: judged[key][start].as_py() for key in keys}, judged.slice(start, end - start))
        for start, end in zip(starts, ends, strict=True)
    ]


def _numbers(judged: "pa.Table") -> dict[str, Any]:
    """The columns of one row, over the pairs of two labelers."""
    prompts = judged["prompt_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    first, second = (judged[name].to_numpy() for name in ("choice", "other_choice"))
    decided = (first < 2) & (second < 2)
    row: dict[str, Any] = {"n": len(first), "n_prompts": len(np.unique(prompts))}
    row |= _estimates("", first, second, prompts)
    row |= {"n_decided": int(decided.sum()), "n_decided_prompts": len(np.unique(prompts[decided]))}
    return row | _estimates("_decided", first[decided], second[decided], prompts[decided])


def _estimates(suffix: str, first: Floats, second: Floats, prompts: Floats) -> dict[str, float | None]:
    agree = beyond_chance = None
    if len(first):
        agree = estimate_share(prompt_means((first == second)[:, None], prompts)[:, 0])
        beyond_chance = kappa(first.astype(np.int64), second.astype(np.int64), prompts, len(_CHOICES))
    return _columns(f"agree{suffix}", agree) | _columns(f"kappa{suffix}", beyond_chance)


def _columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    known = estimate.has_interval
    interval = {f"{name}_low": estimate.low if known else None, f"{name}_high": estimate.high if known else None}
    return {name: estimate.value} | interval


def for_terminal(table: "pa.Table") -> "pa.Table":
    """Two rows for each of the table, over all pairs and over those that both decided, unless these are all; each number and its
    interval as one text, such as "0.71 (0.60 to 0.81)". Revisions are left out of scorers' names unless that makes two the same."""
    import pyarrow as pa

    rows = table.to_pylist()
    names = _without_revisions({row[side] for row in rows for side in ("labeler", "other")})
    has_rounds = "round" in table.schema.names
    lines = []
    for row in rows:
        head = {"labeler": names[row["labeler"]], "other": names[row["other"]]}
        head |= {"round": row["round"]} if has_rounds else {}
        lines.append(head | {"over": "all"} | _line(row, ""))
        if row["n_decided"] < row["n"]:
            lines.append(dict.fromkeys(head) | {"over": "decided"} | _line(row, "_decided"))
    counts, texts = ("pairs", "prompts"), ("agree", "kappa")
    types = {name: pa.int64() for name in counts} | {"round": pa.int32()}
    columns = ["labeler", "other", *["round"] * has_rounds, "over", *counts, *texts]
    return pa.Table.from_pylist(lines, pa.schema([(name, types.get(name, pa.string())) for name in columns]))


def _line(row: dict[str, Any], suffix: str) -> dict[str, Any]:
    n, n_prompts = row[f"n{suffix}"], row[f"n{suffix}_prompts"]
    return {
        "pairs": n,
        "prompts": n_prompts,
        "agree": _text(row, f"agree{suffix}", n_prompts),
        "kappa": _text(row, f"kappa{suffix}", n_prompts),
    }


def _without_revisions(names: set[str]) -> dict[str, str]:
    """Name → it without @revision, or as it is if another one would be called the same. A person's name may have an @."""
    short = [name if name.startswith(HUMAN) else name.split("@")[0] for name in names]
    return {name: title if short.count(title) == 1 else name for name, title in zip(names, short, strict=True)}


def _text(row: dict[str, Any], name: str, n_prompts: int) -> str | None:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if value is None:
        return None
    return f"{value:.2f}" + ("" if low is None else f" ({interval_text(low, high, n_prompts, '.2f')})")
