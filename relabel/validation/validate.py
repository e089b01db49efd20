"""What a store tells about its scorers and labelers: accuracy, calibration, position bias, and what they fight over."""

import json
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from ...store import PairStore, UsageError
from ..temperature import FEWEST, fit_temperature
from .labelled_scores import Judged, judged, known_labeler
from .metrics import (
    Bin,
    Decided,
    Estimate,
    TieAware,
    best_tie_band,
    calibration,
    calibration_error,
    decided,
    tie_aware,
    wilson,
)

BAND_PART = 3
"""The tie band is chosen on one prompt in so many, by its id, and tie-aware accuracy is of the others."""
FEWEST_FOR_BAND = 20
"""Decided pairs, and ties, that a tie band takes; a band from fewer finds little but how often ties are said."""


@dataclass(frozen=True)
class Measured:
    """A scorer (name@revision) against a labeler."""

    scorer: str
    decided: Decided | None
    """None where the labeler decided none of the pairs."""
    tie_aware: TieAware | None
    """None where too few pairs were judged to choose a tie band on."""
    band_decided: int
    band_ties: int
    """Pairs that the tie band was chosen on, or would have been: decided ones and ties."""
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
    """Every scorer that has scored pairs which the labeler has judged, the most accurate on decided pairs first.

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
    return sorted(found, key=lambda one: -one.decided.accuracy.value if one.decided else 0.0)


def _measured(scorer: str, pairs: Judged, temperature: float) -> Measured:
    for_band = np.array([int(prompt[:8], 16) % BAND_PART == 0 for prompt in pairs.prompt])
    ties = pairs.preferred == 0.5
    band_ties, band_decided = int((for_band & ties).sum()), int((for_band & ~ties).sum())
    with_ties = None
    if min(band_ties, band_decided) >= FEWEST_FOR_BAND and not for_band.all():
        band = best_tie_band(pairs.preferred[for_band], pairs.difference[for_band])
        rest = ~for_band
        with_ties = tie_aware(pairs.preferred[rest], pairs.difference[rest], pairs.prompt[rest], band)
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
        decided=decided(pairs.preferred, pairs.difference, pairs.prompt),
        tie_aware=with_ties,
        band_decided=band_decided,
        band_ties=band_ties,
        temperature=temperature,
        bins=bins,
        calibration_error=calibration_error(bins),
        fitted_temperature=fitted,
        fitted_error=fitted_error,
    )


def lines_of(one: Measured) -> list[str]:
    """What is told of a scorer on a terminal."""
    found, with_ties = one.decided, one.tie_aware
    first = "the labeler decided none of the pairs"
    if found:
        kappa = f"{found.kappa.value:.2f} ({_range(found.kappa, '.2f')})" if found.kappa else "undefined"
        first = (
            f"right {found.accuracy.value:.1%} ({_range(found.accuracy, '.1%')}) by chance 50%; kappa {kappa} by chance 0; "
            f"{found.n} decided pairs of {found.n_prompts} prompts"
        )
    second = why_no_band(one)
    if with_ties:
        second = (
            f"with ties {with_ties.accuracy.value:.1%} ({_range(with_ties.accuracy, '.1%')}) by chance {with_ties.chance:.1%}, "
            f"always tie {with_ties.always_tie:.1%}; {with_ties.n} pairs of {with_ties.n_prompts} prompts; "
            f"tie band {with_ties.tie_band:.4g} from {one.band_decided + one.band_ties} others"
        )
    return [one.scorer, f"  {first}", f"  {second}", f"  calibration error {one.calibration_error:.3f}"]


def why_no_band(one: Measured) -> str:
    return (
        f"with ties: no number, since a tie band takes {FEWEST_FOR_BAND} decided pairs and {FEWEST_FOR_BAND} ties of "
        f"one prompt in {BAND_PART}; there are {one.band_decided} and {one.band_ties}"
    )


def _range(of: Estimate, form: str) -> str:
    return f"{of.low:{form}} to {of.high:{form}}"


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
