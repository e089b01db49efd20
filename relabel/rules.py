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
    """How far apart the two are, never negative: in the scorer's unit for single, in ranks for mean-rank, in logits for
    weighted, in shares of the votes for majority and unanimous; (P,)."""


def decide(
    rule: Rule,
    a: Floats,
    b: Floats,
    temperatures: Floats,
    tie_band: float = 0.0,
    tie_quantile: float = 0.0,
    shares: Floats | None = None,
) -> Decisions:
    """Decide pairs by a rule.

    Args:
        a: scores of the first pictures, (P, S).
        b: scores of the second pictures, (P, S). For mean-rank both are ranks among the prompt's pictures, 1 the best;
            call `decide_by_rank` for that.
        temperatures: the difference of scores that makes one logit, (S,).
        tie_band: absolute differences up to this are ties.
        tie_quantile: the share of all pairs, those with the smallest absolute differences, that are ties.
        shares: for weighted, how much each scorer counts, (S,).
    """
    difference = _difference(a, b)
    finite = np.isfinite(difference).all(axis=1)
    p_a = _sigmoid(difference / temperatures).mean(1)
    if rule == "single":
        lead = difference[:, 0]
        return _decisions(_decided(lead, finite, tie_band, tie_quantile), np.abs(lead), p_a, finite)
    if rule == "weighted":
        lead = np.average(difference / temperatures, axis=1, weights=shares)
        return _decisions(_decided(lead, finite, tie_band, tie_quantile), np.abs(lead), _sigmoid(lead), finite)
    if rule not in ("majority", "unanimous"):
        raise ValueError("mean-rank needs ranks: call decide_by_rank")
    votes = [np.sign(_decided(one, finite, tie_band, tie_quantile)) for one in difference.T]
    total = np.mean(votes, axis=0)
    lead = total if rule == "majority" else np.where(np.abs(total) == 1, total, 0.0)
    return _decisions(lead, np.abs(lead), p_a, finite)


def decide_by_rank(
    a: Floats,
    b: Floats,
    rank_a: Floats,
    rank_b: Floats,
    temperatures: Floats,
    tie_band: float = 0.0,
    tie_quantile: float = 0.0,
) -> Decisions:
    """Mean rank: the picture whose ranks by all scorers have the smaller mean wins. Ranks (P, S), 1 is the best."""
    difference = _difference(a, b)
    finite = np.isfinite(difference).all(axis=1)
    lead = (np.asarray(rank_b, np.float64) - np.asarray(rank_a, np.float64)).mean(1)
    p_a = _sigmoid(difference / temperatures).mean(1)
    return _decisions(_decided(lead, finite, tie_band, tie_quantile), np.abs(lead), p_a, finite)


def widest(prompts: NDArray[Any], decisions: Decisions) -> NDArray[np.bool_]:
    """Whether a pair is the one of its prompt with the largest margin: the best picture against the worst, where all
    pairs of a prompt are there. Of equal margins the surer, then the first; (P,).

    Args:
        prompts: which prompt each pair belongs to, (P,).
    """
    known = np.flatnonzero(decisions.choice != "")
    sure = np.abs(decisions.p_a - 0.5)
    order = known[np.lexsort((-sure[known], -decisions.margin[known], prompts[known]))]
    first = np.ones(len(order), bool)
    first[1:] = prompts[order[1:]] != prompts[order[:-1]]
    chosen = np.zeros(len(prompts), bool)
    chosen[order[first]] = True
    return chosen


def _difference(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # inf - inf is nan, which decides nothing
        return np.asarray(a, np.float64) - np.asarray(b, np.float64)


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return 1 / (1 + np.exp(-logits))


def _decided(lead: Floats, finite: Any, band: float, quantile: float) -> Floats:
    """The leads, 0 where they are ties; (P,)."""
    if quantile and finite.any():
        band = float(np.quantile(np.abs(lead[finite]), quantile, method="inverted_cdf"))
    return np.where(np.abs(lead) > band, lead, 0.0)


def _decisions(lead: Floats, margin: Floats, p_a: Floats, finite: Any) -> Decisions:
    choice = np.where(lead > 0, "a", np.where(lead < 0, "b", "tie"))
    return Decisions(np.where(finite, choice, ""), p_a, margin)
