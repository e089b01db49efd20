"""The quality of a scorer in words: for a terminal, and for the parts of a report."""

from collections.abc import Iterator

from ...core.power import rate_text, win_rate_shown
from ...core.stats import estimate_text
from ...core.text import percent
from .metrics import TieAware
from .validate import BAND_PART, MIN_FOR_BAND, ScorerQuality


def quality_lines(quality: ScorerQuality) -> list[str]:
    """The result of one scorer as lines for a terminal."""
    return [
        f"{quality.scorer}{' (in-sample: it made the labels)' if quality.in_sample else ''}: {verdict_text(quality)}",
        *(f"  {line}" for line in (_decided_line(quality), _tie_aware_line(quality), *_part_lines(quality))),
        f"  calibration error {quality.calibration_error:.3f}",
    ]


def verdict_text(quality: ScorerQuality) -> str:
    """Such as "not better than chance; 133 decided pairs show an accuracy of 62 % or more"."""
    if quality.decided is None or quality.verdict is None:
        return "the labeler decided none of the pairs"
    shown = win_rate_shown(quality.decided.n)
    if quality.verdict != "not better than chance" or shown is None:
        return quality.verdict
    return f"not better than chance; {quality.decided.n} decided pairs show an accuracy of {rate_text(shown)} or more"


def tie_verdict_text(with_ties: TieAware) -> str:
    """Whether a scorer with a tie band is better than its choices dealt out at random, and than calling every pair a tie."""
    kappa, above = with_ties.kappa, with_ties.above_always_tie
    if not above.has_interval and not (kappa and kappa.has_interval):
        return "too few prompts to tell from chance"
    of_chance, of_always_tie = bool(kappa and kappa.low > 0), above.low > 0
    if of_chance == of_always_tie:
        return f"{'better than chance and' if of_chance else 'neither better than chance nor'} than always a tie"
    better, not_better = ("chance", "always a tie") if of_chance else ("always a tie", "chance")
    return f"better than {better}, not better than {not_better}"


def _decided_line(quality: ScorerQuality) -> str:
    result = quality.decided
    if result is None:
        return "the labeler decided none of the pairs"
    return (
        f"accuracy {estimate_text(result.accuracy, result.n_prompts)}, by chance 50 %; "
        f"kappa {estimate_text(result.kappa, result.n_prompts, 'z.2f')}, by chance 0; "
        f"{result.n} decided pairs of {result.n_prompts} prompts"
    )


def _tie_aware_line(quality: ScorerQuality) -> str:
    result = quality.tie_aware
    if result is None:
        return f"with ties: no result, because {why_no_tie_band(quality)}"
    return (
        f"with ties {estimate_text(result.accuracy, result.n_prompts)}, by chance {percent(result.chance)}, "
        f"always tie {percent(result.always_tie)}: {tie_verdict_text(result)}; "
        f"kappa {estimate_text(result.kappa, result.n_prompts, 'z.2f')}; {result.n} pairs of {result.n_prompts} prompts; "
        f"tie band {result.tie_band:.4g}, chosen on {quality.band_decided + quality.band_ties} pairs of other prompts"
    )


def _part_lines(quality: ScorerQuality) -> Iterator[str]:
    """Accuracy by what generated the images, and by margin."""
    for name, result in (("one model", quality.one_model), ("two models", quality.two_models)):
        if result:
            accuracy = estimate_text(result.accuracy, result.n_prompts)
            yield f"images of {name}: accuracy {accuracy}; {result.n} pairs of {result.n_prompts} prompts"
    for each in quality.by_margin:
        accuracy = estimate_text(each.accuracy, each.n_prompts)
        yield f"margin {each.smallest:.3g} to {each.largest:.3g}: accuracy {accuracy}; {each.n} pairs"


def why_no_tie_band(quality: ScorerQuality) -> str:
    """Why tie-aware accuracy could not be measured."""
    return (
        f"choosing a tie band takes {MIN_FOR_BAND} decided pairs and {MIN_FOR_BAND} ties, and the prompts set aside for it, "
        f"one in {BAND_PART}, have {quality.band_decided} and {quality.band_ties}"
    )
