"""Pairs that a labeler has labelled, beside the scores of their images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...store import PairStore, UsageError
from ...store.labelers import how_to_label, labelers_with_labels

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

# Pairs whose models are known; an image may come from several. Whether one model generated both images.
_ONE_MODEL = """
    select p.pair_id::varchar, bool_or(a.model_id = b.model_id)
    from current_labels l
    join pairs p using (pair_id)
    join generations a on a.prompt_id = p.prompt_id and a.image_id = p.image_a
    join generations b on b.prompt_id = p.prompt_id and b.image_id = p.image_b
    where l.labeler = ?
    group by all
"""


@dataclass(frozen=True)
class LabelledScores:
    """N pairs."""

    pair: NDArray[np.str_]  # (N,), ids
    prompt: NDArray[np.str_]  # (N,), ids
    preferred: NDArray[np.float64]  # (N,): 1 if a was chosen, 0 if b, ½ for a tie
    difference: NDArray[np.float64]  # (N,): score of a minus score of b


def labelled_scores(store: PairStore, labeler: str, scorer: str) -> LabelledScores:
    """The labels of pairs both of whose images a scorer (name@revision) has scored; skipped pairs are not among them."""
    table = store.sql(_LABELLED, {"labeler": labeler, "scorer": scorer})
    pair, prompt, preferred, difference = (
        table[name].to_numpy(zero_copy_only=False) for name in ("pair_id", "prompt_id", "preferred", "difference")
    )
    return LabelledScores(pair, prompt, preferred.astype(np.float64), difference.astype(np.float64))


def from_one_model(store: PairStore, labeler: str) -> dict[str, bool]:
    """Of the pairs that a labeler labelled, by id: whether one model generated both images. Pairs without known models are missing."""
    return dict(store.rows(_ONE_MODEL, [labeler]))


def require_labeler(store: PairStore, labeler: str) -> None:
    """
    Raises:
        UsageError: if the store has no labels by that labeler.
    """
    names = labelers_with_labels(store)
    if labeler not in names:
        known = f"there are labels by {', '.join(names)}" if names else "it has no labels at all"
        raise UsageError(
            "; ".join([f"{store.path} has no labels by {labeler!r}", *how_to_label(store, labeler), known])
        )
