"""Which round to keep: chosen on half of the evaluation prompts, and reported on the other half."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import BadDataError
from ..core.stats import Estimate, estimate_mean, estimate_share
from ..store import prompt_id
from .record import JudgedPrompt, RoundResult
from .stopping import independent


@dataclass(frozen=True, kw_only=True)
class HeldOutResult:
    """By one scorer on the prompts that had no part in the choice: half of them, or all if there was only one round."""

    win_rate: Estimate
    base_mean: float
    tuned_mean: float
    diff: Estimate
    n_prompts: int


@dataclass(frozen=True, kw_only=True)
class Best:
    number: int
    chosen_by: list[str]
    """Scorers whose mean win rate against the base on the choosing half was the highest: those that made no label."""
    chosen_with: float
    """That win rate. It is the highest of several, and so too high."""

    @property
    def beats_base(self) -> bool:
        return self.chosen_with > 0.5

    reported: dict[str, HeldOutResult]


def best_round(rounds: Sequence[RoundResult]) -> Best:
    """
    Args:
        rounds: finished rounds, at least one; all were evaluated on the same prompts.
    """
    halves = [choosing(result.prompts) for result in rounds]
    judges = _common_judges(rounds, halves)
    rates = [_mean_win_rate(half, judges) for half in halves]
    index = int(np.argmax(rates))  # the first of equals
    best = rounds[index]
    chosen = {judged.prompt for judged in halves[index]} if len(rounds) > 1 else set()
    others = [judged for judged in best.prompts if judged.prompt not in chosen]
    return Best(
        number=best.number,
        chosen_by=judges,
        chosen_with=rates[index],
        reported={name: result for name in best.against_base["scorers"] if (result := held_out(others, name))},
    )


def _common_judges(rounds: Sequence[RoundResult], halves: Sequence[Sequence[JudgedPrompt]]) -> list[str]:
    """The scorers that made no label and have scores on the choosing half of every round; or else any with scores of every round.

    Raises:
        BadDataError: if there is none, so that nothing compares the rounds.
    """
    scored = [{name for judged in half for name in judged.scorers} for half in halves]
    common = set.intersection(*scored)
    scorers = rounds[-1].against_base["scorers"]
    judges = [name for name in independent(rounds[-1].against_base) if name in common] or [
        name for name in scorers if name in common
    ]
    if not judges:
        raise BadDataError(
            "no scorer has a finite score in every round, so that the rounds cannot be compared; name other scorers in [eval], "
            "and begin another loop with another --dir"
        )
    return judges


def choosing(prompts: Iterable[JudgedPrompt]) -> list[JudgedPrompt]:
    """The half of the prompts on which the round is chosen; it follows from the prompts' texts."""
    ordered = sorted(prompts, key=lambda judged: prompt_id(judged.prompt))
    return ordered[::2]


def held_out(prompts: Sequence[JudgedPrompt], scorer: str) -> HeldOutResult | None:
    """One scorer's result on these prompts; None if it has none."""
    rows = [judged.scorers[scorer] for judged in prompts if scorer in judged.scorers]
    if not rows:
        return None
    wins, base, tuned = np.asarray(rows, np.float64).T
    return HeldOutResult(
        win_rate=estimate_share(wins),
        base_mean=float(base.mean()),
        tuned_mean=float(tuned.mean()),
        diff=estimate_mean(tuned - base),
        n_prompts=len(rows),
    )


def _mean_win_rate(prompts: Sequence[JudgedPrompt], judges: Sequence[str]) -> float:
    """Over the judges, of their win rates over the prompts; each judge weighs the same."""
    rates = [
        float(np.mean([judged.scorers[name][0] for judged in prompts if name in judged.scorers])) for name in judges
    ]
    return float(np.mean(rates))
