"""The table of `prefloop scorers ls`."""

import textwrap
from collections.abc import Sequence

from ...core.text import size
from .availability import Availability

WIDTH = 80  # columns
_HEADS = ("scorer", "weights", "download", "license", "prompt", "GPU", "for")


def as_table(scorers: Sequence[Availability]) -> str:
    """A row for each scorer, then what to do for those that cannot run; readable in 80 columns."""
    rows = [_HEADS, *map(_row, scorers)]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(_HEADS))]
    lines = ["".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(_wrapped(note) for note in _notes(scorers))])


def _row(scorer: Availability) -> tuple[str, ...]:
    weights: str = scorer.weights
    if scorer.reachable is not None:
        weights = "answers" if scorer.reachable else "no answer"
    return (
        scorer.name,
        weights,
        "–" if scorer.n_bytes is None else size(scorer.n_bytes),
        scorer.license or "–",
        "read" if scorer.needs_prompt else "not read",
        {True: "advised", False: "no", None: "–"}[scorer.wants_gpu],
        "eval" if scorer.eval_only else "labels, eval",
    )


def _notes(scorers: Sequence[Availability]) -> list[str]:
    notes = []
    fetchable = [scorer for scorer in scorers if scorer.can_fetch]
    if fetchable:
        notes.append(f"download with: prefloop scorers fetch {' '.join(_names(fetchable))}")
    if built_in := _names([scorer for scorer in scorers if scorer.has_built_in]):
        notes.append(f"small weights for the built-in world, with --checkpoint shapes: {', '.join(built_in)}")
    notes += [
        f"{scorer.name}: {scorer.cure}"
        for scorer in scorers
        if not scorer.runs and not scorer.can_fetch and scorer.cure
    ]
    return notes


def _names(scorers: Sequence[Availability]) -> list[str]:
    """Of scorers that have two names the first."""
    names: dict[str, str] = {}
    for scorer in scorers:
        names.setdefault(scorer.source, scorer.name)
    return list(names.values())


def _wrapped(note: str) -> str:
    return "\n".join(textwrap.wrap(note, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
