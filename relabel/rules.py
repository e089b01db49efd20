"""Rules that turn the scores of a pair's two images into a decision: pure functions over arrays, one record per rule.

P is the number of pairs, S the number of scorers. To add a rule, write its function and its record in RULES; for one's own
from Python there is `own_rule`.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from types import CodeType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UsageError

Floats = NDArray[np.float64]
Unit = Literal["the scorer's unit", "ranks", "logits", "share of votes"]

MAX_LOGIT = 1e30
"""Logits are clipped here, far beyond where p_a is 0 or 1: a very small temperature must not make them infinite."""


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """The scores of P pairs by S scorers, and what counts as a tie."""

    a: Floats  # (P, S)
    b: Floats  # (P, S)
    rank_a: Floats  # (P, S): rank among the images of the prompt, 1 is the best
    rank_b: Floats  # (P, S)
    temperatures: Floats  # (S,): the difference of scores that makes one logit
    weights: Floats | None = None  # (S,): how much each scorer counts; None if they count the same
    tie_band: float = 0.0
    """Absolute values up to this are ties."""
    tie_quantile: float = 0.0
    """Fraction of pairs, those with the smallest absolute values, that are ties."""

    @cached_property
    def difference(self) -> Floats:
        """Score of a minus score of b; (P, S)."""
        with np.errstate(invalid="ignore"):  # inf - inf is nan, which decides nothing
            return self.a - self.b

    @cached_property
    def finite(self) -> NDArray[np.bool_]:
        """True where all scores are finite; (P,)."""
        return np.asarray(np.isfinite(self.difference).all(axis=1))

    @cached_property
    def logits(self) -> Floats:
        """(P, S)"""
        with np.errstate(over="ignore"):
            return np.clip(self.difference / self.temperatures, -MAX_LOGIT, MAX_LOGIT)

    @property
    def votes(self) -> Floats:
        """1 where a scorer prefers a, -1 where b, 0 for a tie; (P, S)."""
        return np.stack([np.sign(self.without_ties(column)) for column in self.difference.T], axis=1)

    def without_ties(self, signed: Floats) -> Floats:
        """The values, with ties set to 0; (P,)."""
        band = self.tie_band
        known = self.finite & np.isfinite(signed)
        if self.tie_quantile and known.any():
            band = float(np.quantile(np.abs(signed[known]), self.tie_quantile, method="inverted_cdf"))
        return np.where(np.abs(signed) > band, signed, 0.0)


@dataclass(frozen=True)
class Decisions:
    choice: NDArray[np.str_]
    """a, b, tie, or "" if a score or the margin is not finite, so that nothing can be decided; (P,)."""
    p_a: Floats
    """Probability that a is preferred; (P,)."""
    margin: Floats
    """How far apart the two are, in the rule's unit; never negative; (P,)."""


def single(scores: PairScores) -> Floats:
    return scores.difference[:, 0]


def mean_rank(scores: PairScores) -> Floats:
    return (scores.rank_b - scores.rank_a).mean(1)


def weighted(scores: PairScores) -> Floats:
    return np.average(scores.logits, axis=1, weights=scores.weights)


def majority(scores: PairScores) -> Floats:
    return scores.votes.mean(1)


def unanimous(scores: PairScores) -> Floats:
    share = scores.votes.mean(1)
    return np.where(np.abs(share) == 1, share, 0.0)


def pareto(scores: PairScores) -> Floats:
    """Pareto dominance: better by at least one scorer and worse by none; anything else is a tie."""
    votes = scores.votes
    opposed = (votes == 1).any(1) & (votes == -1).any(1)
    return np.where(opposed, 0.0, votes.mean(1))


@dataclass(frozen=True, kw_only=True)
class Rule:
    signed_margin: Callable[[PairScores], Floats]
    """Positive where a wins, negative where b does; (P,)."""
    summary: str
    """What decides, for help and docs."""
    unit: Unit
    """Unit of the margin. A margin in logits gives p_a too; other rules average the scorers' probabilities."""
    one_scorer: bool = False
    """Takes exactly one scorer."""
    votes: bool = False
    """Counts votes: the tie band then applies to each scorer's difference, not to the margin."""
    takes_weights: bool = False
    """Uses --scorer-weight."""

    @property
    def tie_unit(self) -> Unit:
        """Unit of the tie band."""
        return "the scorer's unit" if self.votes else self.unit


RULES = {
    "single": Rule(signed_margin=single, summary="the scores of one scorer", unit="the scorer's unit", one_scorer=True),
    "mean-rank": Rule(signed_margin=mean_rank, summary="the mean of the ranks among the prompt's images", unit="ranks"),
    "weighted": Rule(
        signed_margin=weighted, summary="the weighted mean of the scorers' logits", unit="logits", takes_weights=True
    ),
    "majority": Rule(signed_margin=majority, summary="most of the scorers' votes", unit="share of votes", votes=True),
    "unanimous": Rule(
        signed_margin=unanimous, summary="votes, only where all scorers agree", unit="share of votes", votes=True
    ),
    "pareto": Rule(
        signed_margin=pareto, summary="better by one scorer or more, worse by none", unit="share of votes", votes=True
    ),
}


@contextmanager
def own_rule(rule: Rule | Callable[[PairScores], Floats]) -> Iterator[str]:
    """Make one's own rule one of RULES during the block.

    Args:
        rule: from the scores of P pairs to (P,) signed margins: positive where a wins, negative where b does, 0 for a tie, nan
            to leave a pair without a label. A function's margins have the scorer's unit; give a Rule for another one.

    Yields:
        The name for RelabelConfig. It ends with a hash of the function's code, since a labeler's name means one way to decide:
        a changed rule makes another labeler. Values that the function takes from outside it are not hashed.

    Raises:
        UsageError: if it is not a function.
    """
    record = rule if isinstance(rule, Rule) else Rule(signed_margin=rule, summary="one's own", unit="the scorer's unit")
    function = record.signed_margin
    if not inspect.isroutine(function):
        raise UsageError(f"a rule must be a function of PairScores, got {function!r}")
    name = f"{function.__name__.strip('<>')}-{_code_hash(function)}"
    RULES[name] = replace(record, signed_margin=_checked(function))
    try:
        yield name
    finally:
        RULES.pop(name, None)


def _code_hash(function: Callable) -> str:
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # typed into an interpreter, or not written in Python
        code = getattr(function, "__code__", None)
        text = function.__qualname__ if code is None else _code_text(code)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _code_text(code: CodeType) -> str:
    """The same in every process: a code object's own repr has its address, a set's an order of its own."""

    def text(constant: object) -> str:
        if isinstance(constant, CodeType):
            return _code_text(constant)
        return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)

    return repr((code.co_code, code.co_names, *map(text, code.co_consts)))


def _checked(function: Callable[[PairScores], Floats]) -> Callable[[PairScores], Floats]:
    def signed_margin(scores: PairScores) -> Floats:
        margins = np.asarray(function(scores), np.float64)
        if margins.shape != scores.finite.shape:
            n, got = len(scores.finite), "x".join(map(str, margins.shape)) or "one"
            raise UsageError(f"the rule {function.__name__} must give one margin per pair, {n} numbers; it gave {got}")
        return margins

    return signed_margin


def decide(rule: str, scores: PairScores) -> Decisions:
    """Decide pairs by one of RULES."""
    record = RULES[rule]
    signed = record.signed_margin(scores)
    decided = signed if record.votes else scores.without_ties(signed)
    choice = np.where(decided > 0, "a", np.where(decided < 0, "b", "tie"))
    p_a = _sigmoid(signed) if record.unit == "logits" else _sigmoid(scores.logits).mean(1)
    known = scores.finite & np.isfinite(signed)
    return Decisions(np.where(known, choice, ""), p_a, np.abs(signed))


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return 1 / (1 + np.exp(-logits))
