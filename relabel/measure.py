"""What a store tells about its scorers and labelers: accuracy, calibration, position bias, and what they fight over."""

import json
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from ..store import PairStore, UsageError
from .judged import Judged, judged, known_labeler
from .quality import Accuracy, Bin, accuracy, best_tie_band, calibration, calibration_error, wilson
from .temperature import FEWEST, fit_temperature


@dataclass(frozen=True)
class Measured:
    """A scorer (name@revision) against a labeler."""

    scorer: str
    accuracy: Accuracy
    n_validation: int
    """Pairs of validation prompts, which the tie band was chosen on; 0 where there were none, and the band is 0."""
    temperature: float
    bins: list[Bin]
    calibration_error: float
    fitted_temperature: float | None
    """None where the choices do not go with the scores, or are too few."""
    fitted_error: float | None


@dataclass(frozen=True)
class Position:
    """How often a labeler chose what was shown to the left."""

    labeler: str
    n: int
    left: float
    low: float
    high: float


@dataclass(frozen=True)
class Fight:
    """A pair that labelers decide in opposite ways."""

    pair_id: UUID
    prompt: str
    image_a: str
    image_b: str
    """Paths below the store's folder."""
    for_a: list[str]
    for_b: list[str]


def measure(store: PairStore, labeler: str) -> list[Measured]:
    """Every scorer that has scored pairs which the labeler has judged, the most accurate first.

    Raises:
        UsageError: where there are none.
    """
    known_labeler(store, labeler)
    scorers = store.rows("select scorer, config from scorers order by scorer")
    found = []
    for scorer, config in scorers:
        pairs = judged(store, labeler, scorer)
        if len(pairs.preferred):
            found.append(_measured(scorer, pairs, float(json.loads(config).get("temperature", 1.0))))
    if not found:
        raise UsageError(f"no scorer has scored the pairs that {labeler} judged; `prefloop relabel --scorer …` does")
    return sorted(found, key=lambda one: -one.accuracy.accuracy)


def _measured(scorer: str, pairs: Judged, temperature: float) -> Measured:
    chosen_on = pairs.validation
    if chosen_on.all():  # nothing would be left to measure on
        chosen_on = np.zeros_like(chosen_on)
    band = best_tie_band(pairs.preferred[chosen_on], pairs.difference[chosen_on])
    rest = ~chosen_on
    bins = calibration(pairs.preferred, pairs.difference, temperature)
    fitted, fitted_error = None, None
    if (pairs.preferred != 0.5).sum() >= FEWEST:
        try:
            fitted = fit_temperature(pairs.difference, pairs.preferred)
            fitted_error = calibration_error(calibration(pairs.preferred, pairs.difference, fitted))
        except ValueError:  # the choices do not go with the scores: there is no temperature to tell
            pass
    return Measured(
        scorer=scorer,
        accuracy=accuracy(pairs.preferred[rest], pairs.difference[rest], pairs.prompt[rest], band),
        n_validation=int(chosen_on.sum()),
        temperature=temperature,
        bins=bins,
        calibration_error=calibration_error(bins),
        fitted_temperature=fitted,
        fitted_error=fitted_error,
    )


def positions(store: PairStore) -> list[Position]:
    """Of every labeler that was shown pairs side by side. Without bias the left one is chosen half of the time."""
    rows = store.rows(
        """select labeler, count(*), avg((choice = shown_left)::integer) from current_labels
        where shown_left is not null and choice in ('a', 'b') group by all order by labeler"""
    )
    return [Position(labeler, n, left, *wilson(left, n)) for labeler, n, left in rows]


def fights(store: PairStore, limit: int) -> list[Fight]:
    """The pairs with the most labelers on the smaller side, the surest first."""
    rows = store.rows(
        """
        with said as (
            select pair_id, list(labeler order by labeler) filter (where choice = 'a') as for_a,
                list(labeler order by labeler) filter (where choice = 'b') as for_b,
                avg(abs(coalesce(p_a, (choice = 'a')::float) - 0.5)) as sure
            from current_labels where choice in ('a', 'b') group by pair_id
            having count(distinct choice) = 2
        )
        select s.pair_id, q.prompt, fa.path, fb.path, s.for_a, s.for_b
        from said s
        join pairs p using (pair_id)
        join prompts q on q.prompt_id = p.prompt_id
        join image_files fa on fa.image_id = p.image_a
        join image_files fb on fb.image_id = p.image_b
        order by least(len(s.for_a), len(s.for_b)) desc, s.sure desc, s.pair_id
        limit $limit
        """,
        {"limit": limit},
    )
    return [Fight(*row) for row in rows]
