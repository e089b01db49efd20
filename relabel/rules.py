"""Rules that turn the scores of a pair's two pictures into a decision. Pure functions over arrays.

P is the number of pairs, S the number of scorers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Rule

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Decisions:
    choice: NDArray[np.str_]
    """a, b, tie, or "" where no rule can decide since a score is not finite; (P,)."""
    p_a: Floats
    """Probability that a is preferred; (P,)."""
    margin: Floats
    """How far apart the two are, never negative: in the scorer's unit for single, in ranks for mean-rank, in shares of
    the votes for majority and unanimous; (P,)."""


def decide(rule: Rule, a: Floats, b: Floats, temperatures: Floats, tie_band: float = 0.0) -> Decisions:
    """Decide pairs by a rule.

    Args:
        a: scores of the first pictures, (P, S).
        b: scores of the second pictures, (P, S). For mean-rank both are ranks among the prompt's pictures, 1 the best;
            call `decide_by_rank` for that.
        temperatures: the difference of scores that makes one logit, (S,).
        tie_band: absolute differences up to this are ties.
    """
    difference = _difference(a, b)
    finite = np.isfinite(difference).all(axis=1)
    votes = np.where(np.abs(difference) > tie_band, np.sign(difference), 0.0)
    if rule == "single":
        lead, margin = votes[:, 0], np.abs(difference[:, 0])
    elif rule == "majority":
        total = votes.mean(1)
        lead, margin = np.sign(total), np.abs(total)
    elif rule == "unanimous":
        total = votes.mean(1)
        lead = np.where(np.abs(total) == 1, total, 0.0)
        margin = np.abs(lead)
    else:
        raise ValueError("mean-rank needs ranks: call decide_by_rank")
    return _decisions(lead, margin, _p_a(difference, temperatures), finite)


def decide_by_rank(
    a: Floats, b: Floats, rank_a: Floats, rank_b: Floats, temperatures: Floats, tie_band: float = 0.0
) -> Decisions:
    """Mean rank: the picture whose ranks by all scorers have the smaller mean wins. Ranks (P, S), 1 is the best."""
    difference = _difference(a, b)
    lead = (np.asarray(rank_b, np.float64) - np.asarray(rank_a, np.float64)).mean(1)
    decided = np.where(np.abs(lead) > tie_band, np.sign(lead), 0.0)
    return _decisions(decided, np.abs(lead), _p_a(difference, temperatures), np.isfinite(difference).all(axis=1))


def _difference(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # inf - inf is nan, which decides nothing
        return np.asarray(a, np.float64) - np.asarray(b, np.float64)


def _p_a(difference: Floats, temperatures: Floats) -> Floats:
    """Mean over the scorers of sigmoid(difference / temperature), (P,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (1 / (1 + np.exp(-difference / temperatures))).mean(1)


def _decisions(lead: Floats, margin: Floats, p_a: Floats, finite: Any) -> Decisions:
    choice = np.where(lead > 0, "a", np.where(lead < 0, "b", "tie"))
    return Decisions(np.where(finite, choice, ""), p_a, margin)
