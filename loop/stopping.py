"""When the loop ends before its last round, and why. Pure functions of the rounds so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.text import percent
from ..eval.best import independent
from .config import LoopConfig
from .guards import GUARDS, out_of_bounds
from .record import RoundResult


def stop_reason(rounds: Sequence[RoundResult], config: LoopConfig) -> str | None:
    """Why no further round is run after these, in words; None if one is.

    Args:
        rounds: finished rounds in order, at least one.
    """
    if config.guards:
        if reason := hacked(rounds[-1]):
            return reason
        if reason := moved_images(rounds[-1]):
            return reason
    if config.patience and len(rounds) >= config.patience:
        last = rounds[-config.patience :]
        if all(no_progress(result) for result in last):
            return f"{_rounds(last)} cannot be told apart from the round before: every interval against it contains ½"
    if len(rounds) >= config.rounds:
        return f"all {config.rounds} rounds are done" if config.rounds > 1 else "the round is done"
    return None


def no_progress(result: RoundResult) -> bool:
    """Whether the interval against the round before contains ½ for every judge that made no label, or of all if each did;
    not known, and so not the case, without an interval."""
    ends = intervals(independent(result.against_previous["scorers"])).values()
    return bool(ends) and all(low <= 0.5 <= high for low, high in ends)


def hacked(result: RoundResult) -> str | None:
    """A scorer that made no label fell while one that did rose, each with its whole interval on its side of ½."""
    scorers = result.against_previous["scorers"]
    made_labels = intervals({name: row for name, row in scorers.items() if row["in_sample"]})
    others = intervals({name: row for name, row in scorers.items() if not row["in_sample"]})
    rose = [name for name, (low, _) in made_labels.items() if low > 0.5]
    fell = [name for name, (_, high) in others.items() if high < 0.5]
    if not rose or not fell:
        return None
    return (
        f"reward hacking in round {result.number}: {_list(rose)}, which made the labels, prefers it to the round before "
        f"({_rates(scorers, rose)}), but {_list(fell)}, which made none, "
        f"{'do' if len(fell) > 1 else 'does'} not ({_rates(scorers, fell)})"
    )


def moved_images(result: RoundResult) -> str | None:
    """A measurement of the images left its bounds."""
    moved = out_of_bounds(result.guards, result.base_guards)
    if not moved:
        return None
    words = [
        f"{name.replace('_', '-')} is {_outside(ratio, *GUARDS[name].bounds)} times the base's, outside of "
        f"{GUARDS[name].bounds[0]:g} to {GUARDS[name].bounds[1]:g}"
        for name, ratio in moved.items()
    ]
    return f"the images of round {result.number} have moved too far: {'; '.join(words)}"


def _outside(ratio: float, low: float, high: float) -> str:
    """A number outside of its bounds with two digits, or as many more as it takes to tell it from the bound."""
    texts = (f"{ratio:.{digits}g}" for digits in range(2, 18))
    return next((text for text in texts if not low <= float(text) <= high), str(ratio))


def intervals(rows: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Interval of each win rate; scorers without one are left out."""
    ends = {name: (row["win_rate_low"], row["win_rate_high"]) for name, row in rows.items()}
    return {name: end for name, end in ends.items() if None not in end}


def _rates(scorers: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(percent(scorers[name]["win_rate"]) for name in names)


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _rounds(rounds: Sequence[RoundResult]) -> str:
    numbers = [str(result.number) for result in rounds]
    return f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {_list(numbers)}"
