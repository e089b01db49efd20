"""What people's labels say so far about the models of an evaluation: settled, still open, or out of reach with its pairs."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import numpy as np

from ...core.power import sample_sentence
from ...core.stats import Estimate, estimate_share, estimate_text, prompt_means
from ...core.text import percent, plural
from ...store import PairStore

MIN_FOR_TIES = 20
"""Labels from which a tie rate is taken."""
LOCK_WAIT = 5.0
"""Seconds to wait for other processes that hold the store; the outcome can also be asked for later."""

EARLY = 3.2905 / 1.9600
"""Half width of a 99.9 % interval over that of a 95 % one. While pairs are left, the wider one decides: who looks after every label
and stops when the 95 % interval excludes one half finds a difference between equal models in 42 % of evaluations of 200 prompts,
with this rule in 7 %."""
MIN_EARLY = 20
"""Pairs before which nothing is settled while pairs are left."""

Status = Literal[
    "not labelled",
    "too few prompts",
    "settled",
    "ahead so far",
    "open",
    "not settled at this rate",
    "cannot be settled",
]
"""
settled: the interval of the win rate excludes one half; while pairs are left, the 99.9 % interval.
ahead so far: only the 95 % interval does, and pairs are left.
not settled at this rate: if the pairs that are left went as those so far, the interval would still contain one half.
cannot be settled: it would, too, if they went as well for either model as the interval so far allows.
open: none of these.
"""
_COMPARISONS = """
    with votes as (
        select pair_id, choice from current_labels join labelers using (labeler) where kind = 'human' and choice <> 'skip'
    )
    select m.name, left(m.model_id::varchar, 8), o.name, left(o.model_id::varchar, 8), e.prompt_id, e.image_index, e.pair_id,
        avg(case when v.choice = 'tie' then 0.5 else ((v.choice = 'a') = (e.image < e.other_image))::double end)
    from evaluation_pairs e
    join models m on m.model_id = e.model_id
    join models o on o.model_id = e.other_id
    left join votes v on v.pair_id = e.pair_id
    where e.evaluation_id = $evaluation
    group by m.name, m.model_id, o.name, o.model_id, e.model_id, e.other_id, e.prompt_id, e.image_index, e.pair_id
    order by m.name, o.name, e.model_id, e.other_id, e.prompt_id, e.image_index
"""
_TIES = """
    select count(*) filter (where choice = 'tie'), count(*)
    from current_labels join labelers using (labeler)
    where kind = 'human' and choice <> 'skip' and ($pairs is null or pair_id in (select unnest($pairs)))
"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models of an evaluation, by people: the labels of a pair are averaged, then the pairs of a prompt, then the prompts."""

    model: str
    other: str
    n_pairs: int
    """Pairs that people can label: their images differ."""
    n_equal: int
    """Comparisons without a pair, because both models generated the same image. They do not count."""
    n_labelled: int
    n_prompts: int
    """Prompts of the labelled pairs."""
    win_rate: Estimate | None
    """Of model over other; ties ½. None before the first label."""
    projected: Estimate | None
    """The same if the pairs that are left went as those so far; none without an interval."""
    status: Status

    @property
    def n_left(self) -> int:
        return self.n_pairs - self.n_labelled


def comparisons(store: PairStore, evaluation: UUID, pairs: Collection[UUID] | None = None) -> list[Comparison]:
    """Every two models of an evaluation.

    Args:
        pairs: only these pairs, such as those of a queue with a limit.

    Raises:
        BusyError: if another process holds the store for LOCK_WAIT seconds.
    """
    with store.session(wait=LOCK_WAIT) as connection:
        rows = connection.execute(_COMPARISONS, {"evaluation": evaluation}).fetchall()
    kept = None if pairs is None else set(pairs)
    by_models: dict[tuple[str, ...], list[tuple]] = defaultdict(list)
    for *models, prompt, _, pair, win in rows:
        if kept is None or pair is None or pair in kept:
            by_models[tuple(models)].append((prompt, pair, win))
    return [_comparison(*_names(*models), of_models) for models, of_models in by_models.items()]


def _names(model: str, model_id: str, other: str, other_id: str) -> tuple[str, str]:
    return (model, other) if model != other else (f"{model} ({model_id})", f"{other} ({other_id})")


def _comparison(model: str, other: str, rows: list[tuple[UUID, UUID | None, float | None]]) -> Comparison:
    """
    Args:
        rows: prompt, pair (None for equal images), and share of its labels that chose the model's image (None without a label).
    """
    pairs = [(prompt.hex, win) for prompt, pair, win in rows if pair is not None]
    labelled = [(prompt, win) for prompt, win in pairs if win is not None]
    win_rate = projected = None
    status: Status = "not labelled"
    if labelled:
        means = prompt_means(np.array([[win] for _, win in labelled]), [prompt for prompt, _ in labelled])[:, 0]
        win_rate = estimate_share(means)
        projected = project(win_rate, win_rate.value, len(labelled), len(pairs))
        status = outcome(win_rate, len(labelled), len(pairs))
    return Comparison(
        model=model,
        other=other,
        n_pairs=len(pairs),
        n_equal=len(rows) - len(pairs),
        n_labelled=len(labelled),
        n_prompts=len({prompt for prompt, _ in labelled}),
        win_rate=win_rate,
        projected=projected,
        status=status,
    )


def outcome(win_rate: Estimate, n: int, n_total: int) -> Status:
    """Whether a win rate is told from one half.

    Args:
        win_rate: over the n pairs so far, of n_total.
    """
    if not win_rate.has_interval:
        return "too few prompts"
    if _is_told(win_rate):
        return "settled" if n == n_total or (n >= MIN_EARLY and _is_told(_widened(win_rate))) else "ahead so far"
    if not any(_is_told(project(win_rate, rate, n, n_total)) for rate in (win_rate.low, win_rate.high)):
        return "cannot be settled"
    return "open" if _is_told(project(win_rate, win_rate.value, n, n_total)) else "not settled at this rate"


def project(win_rate: Estimate, rate: float, n: int, n_total: int) -> Estimate:
    """What the win rate over n pairs becomes if those that are left are won at some rate; the interval narrows with the root of
    the number of pairs."""
    value = (n * win_rate.value + (n_total - n) * rate) / n_total
    narrower = math.sqrt(n / n_total)
    low, high = (value + (end - win_rate.value) * narrower for end in (win_rate.low, win_rate.high))
    return Estimate(value, max(0.0, low), min(1.0, high))


def _is_told(win_rate: Estimate) -> bool:
    return win_rate.low > 0.5 or win_rate.high < 0.5


def _widened(win_rate: Estimate) -> Estimate:
    low, high = (win_rate.value + (end - win_rate.value) * EARLY for end in (win_rate.low, win_rate.high))
    return Estimate(win_rate.value, low, high)


def tie_rate(store: PairStore, pairs: Collection[UUID]) -> tuple[float, str] | None:
    """Share of ties among people's labels of these pairs, or, if they are too few, of all pairs; and what it is a share of.

    Returns:
        None if there are too few labels, or all are ties.
    """
    for selected, name in ((list(pairs), "of these pairs"), (None, "in this store")):
        ((ties, n),) = store.rows(_TIES, {"pairs": selected})
        if n >= MIN_FOR_TIES and ties < n:
            return ties / n, f"{plural(n, 'label')} by people {name}"
    return None


# As text


def plan_lines(store: PairStore, evaluation: UUID, pairs: Collection[UUID]) -> list[str]:
    """What labelling these pairs of an evaluation can show, said before it begins."""
    ties = tie_rate(store, pairs)
    rate = ties[0] if ties else 0.0
    known = (
        f"{percent(rate, 0)} ties so far, of {ties[1]}"
        if ties
        else "the share of ties is not known yet: none are assumed"
    )
    lines = [known]
    for each in comparisons(store, evaluation, pairs):
        line = f"{each.model} against {each.other}: {sample_sentence(each.n_pairs, rate)}"
        if each.n_equal:
            line += f"; {each.n_equal} more have equal images"
        lines.append(line)
    return lines


def outcome_line(each: Comparison) -> str:
    """One comparison in a sentence."""
    head = f"{each.model} against {each.other}: {each.status}"
    if each.win_rate is None:
        return f"{head}; {plural(each.n_left, 'pair')} left"
    head += (
        f"; {each.model} wins {estimate_text(each.win_rate, each.n_prompts)}, {plural(each.n_labelled, 'pair')} labelled, "
        f"{each.n_left} left"
    )
    if each.status in ("too few prompts", "settled") or not each.n_left or each.projected is None:
        return head
    ends = f"{100 * each.projected.low:.1f} to {percent(each.projected.high)}"
    if each.status == "cannot be settled":
        return f"{head}: even if they went as well for either model as the interval allows, it would still contain 50 %"
    return f"{head}; if they went as those so far, the interval would be {ends}"


def outcome_lines(compared: Iterable[Comparison]) -> list[str]:
    return [outcome_line(each) for each in compared]
