"""What a store says about its scorers and labelers: accuracy, calibration, position bias, and disagreements."""

import json
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from ...core.stats import Estimate, estimate_share, interval_text, prompt_means
from ...store import PairStore, UsageError
from ..temperature import FEWEST, fit_temperature
from .labelled_scores import LabelledScores, labelled_scores, require_labeler
from .metrics import (
    Bin,
    Decided,
    TieAware,
    best_tie_band,
    calibration,
    calibration_error,
    decided,
    tie_aware,
)

BAND_PART = 3
"""The tie band is chosen on one prompt in BAND_PART, by its id; tie-aware accuracy is measured on the others."""
MIN_FOR_BAND = 20
"""Decided pairs, and ties, needed to choose a tie band; a band from fewer reflects little but the share of ties."""


@dataclass(frozen=True)
class ScorerQuality:
    """A scorer (name@revision) measured against a labeler."""

    scorer: str
    decided: Decided | None
    """None if the labeler decided none of the pairs."""
    tie_aware: TieAware | None
    """None if too few pairs were labelled to choose a tie band."""
    band_decided: int
    band_ties: int
    """Decided pairs and ties of the prompts that are set aside for the tie band, one in BAND_PART."""
    temperature: float
    bins: list[Bin]
    calibration_error: float
    fitted_temperature: float | None
    """None if the choices do not follow the scores, or are too few."""
    fitted_error: float | None


@dataclass(frozen=True)
class Position:
    """How often a labeler chose the image that was shown on the left."""

    labeler: str
    n: int
    n_prompts: int
    left: Estimate


@dataclass(frozen=True)
class Disagreement:
    """A pair that labelers decide in opposite ways."""

    pair_id: UUID
    prompt: str
    image_a: str
    image_b: str
    """Paths below the store's folder."""
    for_a: list[str]
    for_b: list[str]


def validate_scorers(store: PairStore, labeler: str) -> list[ScorerQuality]:
    """Every scorer that has scored pairs which the labeler has labelled, the most accurate on decided pairs first.

    Raises:
        UsageError: if there are no such scorers.
    """
    require_labeler(store, labeler)
    scorers = store.rows("select scorer, config from scorers order by scorer")
    results = []
    for scorer, config in scorers:
        pairs = labelled_scores(store, labeler, scorer)
        if len(pairs.preferred):
            results.append(_quality(scorer, pairs, float(json.loads(config).get("temperature", 1.0))))
    if not results:
        raise UsageError(f"no scorer has scored the pairs that {labeler} labelled; run `prefloop relabel --scorer …`")
    return sorted(results, key=lambda result: -result.decided.accuracy.value if result.decided else 0.0)


def _quality(scorer: str, pairs: LabelledScores, temperature: float) -> ScorerQuality:
    for_band = np.array([int(prompt[:8], 16) % BAND_PART == 0 for prompt in pairs.prompt])
    ties = pairs.preferred == 0.5
    band_ties, band_decided = int((for_band & ties).sum()), int((for_band & ~ties).sum())
    with_ties = None
    if min(band_ties, band_decided) >= MIN_FOR_BAND and not for_band.all():
        band = best_tie_band(pairs.preferred[for_band], pairs.difference[for_band])
        others = ~for_band
        with_ties = tie_aware(pairs.preferred[others], pairs.difference[others], pairs.prompt[others], band)
    bins = calibration(pairs.preferred, pairs.difference, temperature)
    fitted, fitted_error = None, None
    if (pairs.preferred != 0.5).sum() >= FEWEST:
        try:
            fitted = fit_temperature(pairs.difference, pairs.preferred)
            fitted_error = calibration_error(calibration(pairs.preferred, pairs.difference, fitted))
        except ValueError:  # the choices do not follow the scores: no temperature fits them
            pass
    return ScorerQuality(
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


def quality_lines(quality: ScorerQuality) -> list[str]:
    """The result of one scorer as lines for a terminal."""
    over_decided, with_ties = quality.decided, quality.tie_aware
    first = "the labeler decided none of the pairs"
    if over_decided:
        n, n_prompts, accuracy = over_decided.n, over_decided.n_prompts, over_decided.accuracy
        kappa = "undefined"
        if over_decided.kappa:
            interval = interval_text(over_decided.kappa.low, over_decided.kappa.high, n_prompts, ".2f")
            kappa = f"{over_decided.kappa.value:.2f} ({interval})"
        interval = interval_text(accuracy.low, accuracy.high, n_prompts)
        first = (
            f"accuracy {accuracy.value:.1%} ({interval}), by chance 50%; kappa {kappa}, by chance 0; "
            f"{n} decided pairs of {n_prompts} prompts"
        )
    second = f"with ties: no result, because {why_no_tie_band(quality)}"
    if with_ties:
        interval = interval_text(with_ties.accuracy.low, with_ties.accuracy.high, with_ties.n_prompts)
        second = (
            f"with ties {with_ties.accuracy.value:.1%} ({interval}), by chance {with_ties.chance:.1%}, "
            f"always tie {with_ties.always_tie:.1%}; {with_ties.n} pairs of {with_ties.n_prompts} prompts; "
            f"tie band {with_ties.tie_band:.4g}, chosen on {quality.band_decided + quality.band_ties} pairs of other prompts"
        )
    return [quality.scorer, f"  {first}", f"  {second}", f"  calibration error {quality.calibration_error:.3f}"]


def why_no_tie_band(quality: ScorerQuality) -> str:
    """Why tie-aware accuracy could not be measured."""
    return (
        f"choosing a tie band takes {MIN_FOR_BAND} decided pairs and {MIN_FOR_BAND} ties, and the prompts set aside for it, "
        f"one in {BAND_PART}, have {quality.band_decided} and {quality.band_ties}"
    )


def positions(store: PairStore) -> list[Position]:
    """Position bias of every labeler that was shown pairs side by side; without bias, half of the choices are the left one."""
    table = store.sql(
        """select labeler, prompt_id::varchar as prompt_id, (choice = shown_left)::double as chose_left
        from current_labels join pairs using (pair_id)
        where shown_left is not null and choice in ('a', 'b') order by labeler, pair_id"""
    )
    labelers, prompts, chose_left = (column.to_numpy(zero_copy_only=False) for column in table.columns)
    results = []
    for labeler in np.unique(labelers):
        of_labeler = labelers == labeler
        means = prompt_means(chose_left[of_labeler][:, None], prompts[of_labeler])[:, 0]
        results.append(Position(str(labeler), int(of_labeler.sum()), len(means), estimate_share(means)))
    return results


def disagreements(store: PairStore, limit: int) -> list[Disagreement]:
    """The pairs with the most labelers on the smaller side, the most confident labelers first."""
    rows = store.rows(
        """
        with sides as (
            select pair_id, list(labeler order by labeler) filter (where choice = 'a') as for_a,
                list(labeler order by labeler) filter (where choice = 'b') as for_b,
                avg(abs(coalesce(p_a, (choice = 'a')::float) - 0.5)) as confidence
            from current_labels where choice in ('a', 'b') group by pair_id
            having count(distinct choice) = 2
        )
        select s.pair_id, q.prompt, fa.path, fb.path, s.for_a, s.for_b
        from sides s
        join pairs p using (pair_id)
        join prompts q on q.prompt_id = p.prompt_id
        join image_files fa on fa.image_id = p.image_a
        join image_files fb on fb.image_id = p.image_b
        order by least(len(s.for_a), len(s.for_b)) desc, s.confidence desc, s.pair_id
        limit $limit
        """,
        {"limit": limit},
    )
    return [Disagreement(*row) for row in rows]
