"""Which of several models to keep: chosen on half of the evaluation prompts, and reported on the other half."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import BadDataError
from ..core.stats import Estimate, estimate_mean, estimate_share
from ..store import prompt_id
from .compare import wins_of
from .result import ImagePair


@dataclass(frozen=True, kw_only=True)
class JudgedPrompt:
    """An evaluation prompt: means over its pairs of images, against the base."""

    prompt: str
    scorers: dict[str, tuple[float, float, float]]
    """Scorer → share of pairs that the tuned model won, ties one half; mean score of the base's images, and of the tuned
    model's. Scorers without finite scores of the prompt are missing."""


@dataclass(frozen=True, kw_only=True)
class HeldOutResult:
    """By one scorer on the prompts that had no part in the choice: half of them, or all if there was only one model."""

    win_rate: Estimate
    base_mean: float
    tuned_mean: float
    diff: Estimate
    n_prompts: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    index: int
    """Of the best model."""
    chosen_by: list[str]
    """Scorers whose mean win rate against the base on the choosing half was the highest: those that made no label."""
    chosen_with: float
    """That win rate. It is the highest of several, and so too high."""
    reported: dict[str, HeldOutResult]
    """Scorer → the best model's result on the other half."""


def choose(models: Sequence[Sequence[JudgedPrompt]], scorers: Mapping[str, Mapping[str, Any]]) -> Choice:
    """
    Args:
        models: at least one, each with the same prompts.
        scorers: of the last model, by name, with in_sample.

    Raises:
        BadDataError: if no scorer has results of every model, so that nothing compares them.
    """
    halves = [choosing(prompts) for prompts in models]
    judges = _common_judges(halves, scorers)
    rates = [_mean_win_rate(half, judges) for half in halves]
    index = int(np.argmax(rates))  # the first of equals
    chosen = {judged.prompt for judged in halves[index]} if len(models) > 1 else set()
    others = [judged for judged in models[index] if judged.prompt not in chosen]
    names = dict.fromkeys(name for judged in models[index] for name in judged.scorers)
    reported = {name: result for name in names if (result := held_out(others, name))}
    return Choice(index=index, chosen_by=judges, chosen_with=rates[index], reported=reported)


def judged_prompts(pairs: Sequence[ImagePair]) -> list[JudgedPrompt]:
    """Means over the pairs of each prompt, for each scorer that gave both images of a pair finite scores."""
    by_prompt: dict[str, list[ImagePair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    judged = []
    for prompt, of_prompt in by_prompt.items():
        scorers = {}
        for name in of_prompt[0].scores:
            scores = np.array([pair.scores[name] for pair in of_prompt], np.float64)
            base, tuned = scores[np.isfinite(scores).all(axis=1)].T
            if len(base):
                scorers[name] = (float(wins_of(base, tuned).mean()), float(base.mean()), float(tuned.mean()))
        judged.append(JudgedPrompt(prompt=prompt, scorers=scorers))
    return judged


def independent(scorers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of the scorers that made no training label; of all scorers if each made some."""
    return {name: row for name, row in scorers.items() if not row["in_sample"]} or dict(scorers)


def _common_judges(halves: Sequence[Sequence[JudgedPrompt]], scorers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scorers that made no label and have scores on the choosing half of every model; or else any with scores of every model."""
    scored = [{name for judged in half for name in judged.scorers} for half in halves]
    common = set.intersection(*scored)
    judges = [name for name in independent(scorers) if name in common] or [name for name in scorers if name in common]
    if not judges:
        raise BadDataError("no scorer has a finite score of every model, so that they cannot be compared")
    return judges


def choosing(prompts: Iterable[JudgedPrompt]) -> list[JudgedPrompt]:
    """The half of the prompts on which the best is chosen; it follows from the prompts' texts."""
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
