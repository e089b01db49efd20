"""The statistics of raters as text: columns of a table, and what stands out."""

from collections.abc import Iterator

from ...core.stats import MIN_PROMPTS, Estimate, estimate_text
from ...core.text import percent, plural
from .raters import MIN_SHARED, Rater, RaterReport


def rater_notes(result: RaterReport) -> list[str]:
    """What stands out about each rater, a sentence each."""
    return [note for rater in result.raters for note in _notes(rater)]


def _notes(rater: Rater) -> Iterator[str]:
    name = rater.labeler
    if rater.left and rater.n_sides >= MIN_PROMPTS and not rater.left.low <= 0.5 <= rater.left.high:
        side = "left" if rater.left.value > 0.5 else "right"
        share = rater.left.value if side == "left" else 1 - rater.left.value
        yield f"{name} chose the {side} image in {percent(share, 0)} of {rater.n_sides} answers, which is more often than by chance"
    evidence = f"kappa {estimate_text(rater.kappa, rater.n_shared_prompts, 'z.2f')}, {_shared(rater)}"
    either = "; it may be either of the two, since there is only one other rater" if rater.n_others == 1 else ""
    if rater.verdict == "no better than chance":
        yield f"{name} cannot be told from a rater who answers at random: {evidence}{either}"
    elif rater.verdict == "worse than chance":
        yield f"{name} agrees with the others less than by chance: {evidence}{either}"
    elif rater.verdict == "too few shared pairs":
        yield (
            f"{name}: whether the labels are better than random ones cannot be said from {_shared(rater)}; it takes "
            f"about {MIN_SHARED} pairs, and {MIN_PROMPTS} prompts"
        )
    elif rater.verdict == "no shared pairs" and rater.n_labels:
        yield (
            f"{name}: whether the labels are better than random ones cannot be said without pairs that somebody else "
            "labelled too; `prefloop label --overlap 2` has two people label each pair"
        )


def _shared(rater: Rater) -> str:
    return f"{plural(rater.n_shared, 'shared pair')} of {plural(rater.n_shared_prompts, 'prompt')}"


def rater_columns(result: RaterReport) -> list[dict[str, str]]:
    """A row for each rater, as text by column."""
    return [
        {
            "labeler": rater.labeler,
            "labels": f"{rater.n_labels}",
            "against random": rater.verdict,
            "kappa (interval)": "" if rater.n_shared == 0 else _short(rater.kappa),
            "agree with others": "" if rater.agreement is None else percent(rater.agreement.value),
            "shared": f"{rater.n_shared}",
            "left (interval)": "" if rater.left is None else estimate_text(rater.left, rater.n_sides),
            "same when repeated": _repeated(rater),
            "ties": "" if rater.ties is None else percent(rater.ties),
            "skips": f"{rater.n_skips}",
            "seconds": "" if rater.seconds is None else f"{rater.seconds:.1f}",
        }
        for rater in result.raters
    ]


_WITH_OTHERS = ("against random", "kappa (interval)", "agree with others", "shared")


def in_two_tables(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows without the columns that compare a rater with others, and those alone: 100 columns of text hold each."""
    alone = [{name: text for name, text in row.items() if name not in _WITH_OTHERS} for row in rows]
    return alone, [{name: row[name] for name in ("labeler", *_WITH_OTHERS)} for row in rows]


def _repeated(rater: Rater) -> str:
    return "" if rater.self_agreement is None else f"{percent(rater.self_agreement.value)} of {rater.n_repeats}"


def between_columns(result: RaterReport) -> list[dict[str, str]]:
    """A row for each two raters, as text by column."""
    return [
        {
            "labeler": pair.labeler,
            "other": pair.other,
            "pairs": f"{pair.n}",
            "agree": percent(pair.agreement.value),
            "kappa (interval)": _short(pair.kappa),
        }
        for pair in result.between
    ]


def _short(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    if not estimate.has_interval:
        return f"{estimate.value:z.2f} (none)"
    return f"{estimate.value:z.2f} ({estimate.low:z.2f} to {estimate.high:z.2f})"


def alpha_line(result: RaterReport) -> str:
    """Krippendorff's alpha over all raters, or why there is none."""
    if not result.n_alpha:
        return "Krippendorff's alpha: no pair was labelled by two people"
    over = f"{plural(result.n_alpha, 'pair')} of {plural(result.n_alpha_prompts, 'prompt')} with two labels or more"
    if result.alpha is None:
        return f"Krippendorff's alpha: undefined, all labels are the same; {over}"
    return f"Krippendorff's alpha {estimate_text(result.alpha, result.n_alpha_prompts, 'z.2f')}; {over}"
