"""What a store says about its scorers and labelers: accuracy, calibration, position bias, and disagreements."""

import json
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from ...core.stats import Estimate, estimate_share, prompt_means
from ...store import PairStore, UsageError
from ..scores import COLUMN_OF
from ..temperature import FEWEST, fit_temperature
from .labelled_scores import LabelledScores, from_one_model, labelled_scores, require_labeler
from .metrics import (
    Bin,
    Decided,
    MarginBin,
    TieAware,
    Verdict,
    best_tie_band,
    by_margin,
    calibration,
    calibration_error,
    decided,
    tie_aware,
    verdict,
)

BAND_PART = 3
"""The tie band is chosen on one prompt in BAND_PART, by its id; tie-aware accuracy is measured on the others."""
MIN_FOR_BAND = 20
"""Decided pairs, and ties, needed to choose a tie band; a band from fewer reflects little but the share of ties."""


@dataclass(frozen=True)
class ScorerQuality:
    """A scorer (name@revision) measured against a labeler."""

    scorer: str
    in_sample: bool
    """The labeler's labels were made with this scorer's scores, so that its accuracy is not independent evidence."""
    decided: Decided | None
    """None if the labeler decided none of the pairs."""
    verdict: Verdict | None
    """Whether it predicts the decided pairs better than chance."""
    one_model: Decided | None
    """Over the decided pairs whose images are from one model; None if there are none."""
    two_models: Decided | None
    by_margin: list[MarginBin]
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
    label_makers = _label_makers(store, labeler)
    scorers = store.rows("select scorer, config from scorers order by scorer")
    results, one_model = [], from_one_model(store, labeler)
    for scorer, config in ((scorer, json.loads(config)) for scorer, config in scorers):
        if COLUMN_OF in config:  # not scores: a further column of a scorer's
            continue
        pairs = labelled_scores(store, labeler, scorer)
        if len(pairs.preferred):
            in_sample = scorer.split("@")[0] in label_makers
            results.append(_quality(scorer, in_sample, pairs, one_model, float(config.get("temperature", 1.0))))
    if not results:
        raise UsageError(f"no scorer has scored the pairs that {labeler} labelled; run `prefloop relabel --scorer …`")
    return sorted(results, key=lambda result: -result.decided.accuracy.value if result.decided else 0.0)


def _label_makers(store: PairStore, labeler: str) -> set[str]:
    """Names of the scorers, of any revision, whose scores a labeler decides by; none if it is a person."""
    configs = [
        json.loads(config) for (config,) in store.rows("select config from labelers where labeler = ?", [labeler])
    ]
    return {scorer.split("@")[0] for config in configs for scorer in config.get("scorers", [])}


def _quality(
    scorer: str, in_sample: bool, pairs: LabelledScores, one_model: dict[str, bool], temperature: float
) -> ScorerQuality:
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
    over_decided = decided(pairs.preferred, pairs.difference, pairs.prompt)
    models = np.array([one_model.get(pair) for pair in pairs.pair])
    of_one, of_two = (
        decided(pairs.preferred[kind], pairs.difference[kind], pairs.prompt[kind])
        for kind in (models == True, models == False)  # noqa: E712  # None is neither
    )
    return ScorerQuality(
        scorer=scorer,
        in_sample=in_sample,
        decided=over_decided,
        verdict=verdict(over_decided) if over_decided else None,
        one_model=of_one,
        two_models=of_two,
        by_margin=by_margin(pairs.preferred, pairs.difference, pairs.prompt),
        tie_aware=with_ties,
        band_decided=band_decided,
        band_ties=band_ties,
        temperature=temperature,
        bins=bins,
        calibration_error=calibration_error(bins),
        fitted_temperature=fitted,
        fitted_error=fitted_error,
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
