"""Pairs that a labeler has judged, beside the scores of their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...store import PairStore, UsageError

_JUDGED = """
    select l.pair_id::varchar as pair_id, s.prompt_id::varchar as prompt_id,
        case l.choice when 'a' then 1.0 when 'b' then 0.0 else 0.5 end as preferred,
        s.score_a::double - s.score_b::double as difference
    from current_labels l
    join pair_scores s using (pair_id)
    where l.labeler = $labeler and l.choice <> 'skip' and s.scorer = $scorer
        and isfinite(s.score_a) and isfinite(s.score_b)
    order by l.pair_id
"""


@dataclass(frozen=True)
class Judged:
    """N pairs."""

    prompt: NDArray[np.str_]  # (N,), ids
    preferred: NDArray[np.float64]  # (N,): 1 where a was chosen, 0 where b, ½ for a tie
    difference: NDArray[np.float64]  # (N,): score of a minus score of b


def judged(store: PairStore, labeler: str, scorer: str) -> Judged:
    """What a labeler said of pairs that a scorer (name@revision) has scored wholly."""
    table = store.sql(_JUDGED, {"labeler": labeler, "scorer": scorer})
    prompt, preferred, difference = (
        table[name].to_numpy(zero_copy_only=False) for name in ("prompt_id", "preferred", "difference")
    )
    return Judged(prompt, preferred.astype(np.float64), difference.astype(np.float64))


def known_labeler(store: PairStore, labeler: str) -> None:
    """
    Raises:
        UsageError: where the store has no labels of that name.
    """
    names: Sequence[str] = [name for (name,) in store.rows("select distinct labeler from labels order by labeler")]
    if labeler not in names:
        there = f"there are labels of {', '.join(names)}" if names else "there are none"
        raise UsageError(f"{store.path} has no labels of {labeler!r}; {there}")
