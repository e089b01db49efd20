"""Finished rounds made by hand."""

from typing import Any

from prefloop.eval.best import JudgedPrompt
from prefloop.loop.record import RoundResult

Interval = tuple[float, float, float]
"""Win rate and its interval."""


def row(interval: Interval, *, in_sample: bool = False) -> dict[str, Any]:
    rate, low, high = interval
    return {
        "win_rate": rate,
        "win_rate_low": low,
        "win_rate_high": high,
        "in_sample": in_sample,
        "n_prompts": 400,
        "base_mean": 0.4,
        "tuned_mean": 0.5,
    }


def evaluation(labels: Interval, held_out: dict[str, Interval]) -> dict[str, Any]:
    """The result of eval with pickscore, which made the labels, and other scorers, which made none."""
    scorers = {name: row(interval) for name, interval in held_out.items()}
    scorers["pickscore"] = row(labels, in_sample=True)
    sampling = {"prompts": "shapes-heldout", "settings": "10 steps, guidance 2.5"}
    return {"scorers": scorers, "report": "loop/reports/one", **sampling}


BETTER, SAME, WORSE = (0.6, 0.55, 0.65), (0.51, 0.46, 0.56), (0.42, 0.37, 0.47)


def finished(
    number: int = 1,
    labels: Interval = BETTER,
    held_out: Interval | dict[str, Interval] = BETTER,
    prompts: list[JudgedPrompt] | None = None,
    guards: dict[str, float] | None = None,
) -> RoundResult:
    """A round whose two evaluations have the same win rates."""
    scorers = held_out if isinstance(held_out, dict) else {"hps": held_out}
    return RoundResult(
        number=number,
        n_prompts=8,
        n_images=32,
        n_pairs=20,
        n_undecided_prompts=1,
        labeler="pickscore",
        train={"steps": 4},
        against_base=evaluation(labels, scorers),
        against_previous=evaluation(labels, scorers),
        prompts=prompts or [],
        guards=guards or {"saturation": 0.2},
        base_guards={"saturation": 0.2},
        samples=[],
        seconds={"generate": 1.0},
    )


def judged(prompt: str, win: float, name: str = "hps") -> JudgedPrompt:
    return JudgedPrompt(prompt=prompt, scorers={name: (win, 0.0, 2 * win - 1)})
