"""How sure a difference of scores is, fitted on somebody's choices."""

import numpy as np
from numpy.typing import NDArray

from ..store import PairStore, UsageError
from .validation.labelled_scores import labelled_scores, require_labeler

FEWEST = 10  # decided pairs


def fit_temperature(difference: NDArray[np.float64], preferred: NDArray[np.float64]) -> float:
    """The temperature T at which sigmoid(difference / T) makes the choices most likely.

    Choices count as N+1 of N+2, as in Platt's scaling (Platt 1999, "Probabilistic outputs for support vector machines"),
    so that choices which the scores predict perfectly do not lead to T = 0.

    Args:
        difference: score of a minus score of b, (N,).
        preferred: 1 where a was chosen, 0 where b, ½ for a tie, (N,).

    Raises:
        ValueError: if the choices go against the scores or are unrelated to them.
    """
    from scipy.optimize import brentq

    n = int((preferred != 0.5).sum())
    target = (preferred * n + 1) / (n + 2)  # a tie stays ½

    def slope(inverse: float) -> float:
        """Derivative of the log likelihood by 1/T; it falls as 1/T grows."""
        with np.errstate(over="ignore"):
            return float(((target - 1 / (1 + np.exp(-difference * inverse))) * difference).sum())

    if slope(0.0) <= 0:
        raise ValueError("the choices do not agree with the scores")
    high = 1 / np.abs(difference).max()
    while slope(high) > 0:
        high *= 2
    return 1 / float(brentq(slope, 0.0, high, xtol=1e-12, rtol=1e-12))  # type: ignore[arg-type]  # a float unless asked for more


def labeler_temperature(store: PairStore, labeler: str, scorer: str) -> tuple[float, int]:
    """The temperature of a scorer (name@revision) fitted on a labeler's choices, and the number of pairs.

    Raises:
        UsageError: if there are too few decided pairs, or they are unrelated to the scores.
    """
    require_labeler(store, labeler)
    pairs = labelled_scores(store, labeler, scorer)
    n = int((pairs.preferred != 0.5).sum())
    if n < FEWEST:
        raise UsageError(
            f"{labeler} has decided {n} pairs that {scorer} has scored; a temperature needs {FEWEST}; decide more, "
            "or leave --fit-temperature out"
        )
    try:
        return fit_temperature(pairs.difference, pairs.preferred), len(pairs.preferred)
    except ValueError as error:
        raise UsageError(f"no temperature of {scorer} fits {labeler}: {error}; leave --fit-temperature out") from error
