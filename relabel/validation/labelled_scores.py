"""Pairs that a labeler has labelled, beside the scores of their images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...store import PairStore, UsageError

_LABELLED = """
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
class LabelledScores:
    """N pairs."""

    prompt: NDArray[np.str_]  # (N,), ids
    preferred: NDArray[np.float64]  # (N,): 1 if a was chosen, 0 if b, ½ for a tie
    difference: NDArray[np.float64]  # (N,): score of a minus score of b


def labelled_scores(store: PairStore, labeler: str, scorer: str) -> LabelledScores:
    """The labels of pairs both of whose images a scorer (name@revision) has scored; skipped pairs are not among them."""
    table = store.sql(_LABELLED, {"labeler": labeler, "scorer": scorer})
    prompt, preferred, difference = (
        table[name].to_numpy(zero_copy_only=False) for name in ("prompt_id", "preferred", "difference")
    )
    return LabelledScores(prompt, preferred.astype(np.float64), difference.astype(np.float64))


def require_labeler(store: PairStore, labeler: str) -> None:
    """
    Raises:
        UsageError: if the store has no labels by that labeler.
    """
    names = [name for (name,) in store.rows("select distinct labeler from labels order by labeler")]
    if labeler not in names:
        known = f"there are labels by {', '.join(names)}" if names else "it has no labels at all"
        raise UsageError(f"{store.path} has no labels by {labeler!r}; {known}")
