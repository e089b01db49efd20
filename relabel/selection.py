"""Which of the decided pairs get a label: pure functions over arrays, one record per strategy.

P is the number of pairs. To add a strategy, write its function and its record in SELECTIONS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rules import Decisions


@dataclass(frozen=True, kw_only=True)
class Selection:
    select: Callable[[NDArray[Any], Decisions], NDArray[np.bool_]]
    """True for the pairs to label, (P,), from the prompt of each pair, (P,), and the decisions."""
    summary: str
    """Which pairs, for help and docs."""


def decided(prompts: NDArray[Any], decisions: Decisions) -> NDArray[np.bool_]:  # noqa: ARG001
    return decisions.choice != ""


def largest_margin(prompts: NDArray[Any], decisions: Decisions) -> NDArray[np.bool_]:
    """The pair with the largest margin of each prompt. Of equal margins, the one whose p_a is furthest from ½, then the
    first."""
    known = np.flatnonzero(decisions.choice != "")
    confidence = np.abs(decisions.p_a - 0.5)
    order = known[np.lexsort((-confidence[known], -decisions.margin[known], prompts[known]))]
    first = np.ones(len(order), bool)
    first[1:] = prompts[order[1:]] != prompts[order[:-1]]
    selected = np.zeros(len(prompts), bool)
    selected[order[first]] = True
    return selected


SELECTIONS = {
    "all": Selection(select=decided, summary="every pair"),
    "best-worst": Selection(select=largest_margin, summary="only the pair with the largest margin of each prompt"),
}
