"""Is it learning? What the two tables of a run say, in words, with the option to change.

Pure functions over the rows of metrics.csv and validation.csv, as csv gives them or as the loop has them; an absent or
empty cell is nan. Errors are compared with the reference's, never taken as they are: 0.1 is 10 % above the reference's.
"""

import math
from dataclasses import dataclass

import numpy as np

from .tables import Floats, Rows, best_step, column, error_changes, looks, merits

# The thresholds were chosen on runs of the built-in world with known faults; what those runs showed stands beside them.
MIN_STEPS = 50  # at full learning rate: a healthy run's interval left 1/2 behind only at step 160
MIN_PAIRS = 20  # held-out: twice as many still left an interval of implicit accuracy that was 0.23 wide
RECENT = 5  # rows of metrics.csv, 50 steps: one row alone strays by 0.05 in implicit accuracy
STILL = 0.001  # errors moved by 0.0002 where the learning rate was 75 times too low, by 0.003 and more in healthy runs
WORSE = 0.02  # the chosen error rose by at most 0.007 in healthy runs, by 0.2 where beta was 25 times too low
FAR = 0.5  # the chosen error rose by 3 within 20 steps where the learning rate was 13 times too high
LOSS_GROWN = 2.0  # times the first row's; 8 to 19 where the run diverged
NORM_GROWN = 5.0  # times the first row's; 18 to 140 where the run diverged, below 2 elsewhere
LITTLE_LEFT = 0.1  # of the gradient's weight, which is 1/2 at the start
HIGH = 0.75  # implicit accuracy on the pairs that are trained on; 0.87 where 68 pairs were learned by heart, 0.62 in a healthy run
FALLEN = 0.05  # of implicit accuracy below its best look; looks at 42 pairs stray by about as much
GAP = 0.2  # of implicit accuracy from held-out to training pairs; 0.25 where 68 pairs were learned by heart
RISEN = 0.02  # of the held-out chosen error above its best look, under sft


@dataclass(frozen=True)
class Verdict:
    """One finding about a run."""

    name: str
    reason: str
    """The numbers it rests on."""
    lever: str
    """The option to change, and which way."""


@dataclass(frozen=True)
class Shown:
    """What the tables show at their end; nan where they show nothing."""

    step: int
    steps_at_full_rate: int
    """Since the learning rate was highest, so that warm-up does not count."""
    learning_rate: float
    """Its highest."""
    preference: bool
    """Whether there are preferences between two pictures, and a reference; sft has neither."""
    first_loss: float
    loss: float
    first_norm: float
    norm: float
    train_accuracy: float
    gradient_left: float
    n_pairs: int
    """Held-out ones."""
    accuracy: float
    low: float
    high: float
    chosen: float
    """Change of the held-out chosen error against the reference's, or against the first look where there is none."""
    rejected: float
    best_step: int
    fallen: float
    """Implicit accuracy from the best look to the last; under sft the rise of the chosen error."""


def verdicts(metrics: Rows, validation: Rows) -> list[Verdict]:
    """What the tables say, the worst first; never empty."""
    shown = summarize(metrics, validation)
    if (diverging := _diverging(shown)) is not None:
        return [diverging]  # whatever else the numbers show comes of that
    found = [verdict for rule in _FAULTS if (verdict := rule(shown)) is not None]
    # with a fault beside it "not learning" would ask for the opposite of what the fault asks for
    return found or [_not_learning(shown) or _too_early(shown) or _learning(shown)]


def summarize(metrics: Rows, validation: Rows) -> Shown:
    """The numbers that the verdicts rest on."""
    rows = looks(validation)
    steps, rates = column(metrics, "step"), column(metrics, "learning_rate")
    step = int(max([0, *steps, *column(rows, "step")]))
    known_rate = bool(np.isfinite(rates).any())
    peak = int(np.nanargmax(rates)) if known_rate else 0
    values = merits(rows)
    fallen = np.nanmax(values) - values[-1] if np.isfinite(values).any() else math.nan
    return Shown(
        step=step,
        steps_at_full_rate=step - (int(steps[peak]) if peak else 0),
        learning_rate=float(rates[peak]) if known_rate else math.nan,
        preference=bool(np.isfinite(column(metrics, "implicit_accuracy")).any()),
        first_loss=_mean(column(metrics, "loss")[:1]),
        loss=_mean(column(metrics, "loss")[-RECENT:]),
        first_norm=_mean(column(metrics, "grad_norm")[:1]),
        norm=_mean(column(metrics, "grad_norm")[-RECENT:]),
        train_accuracy=_mean(column(metrics, "implicit_accuracy")[-RECENT:]),
        gradient_left=_mean(column(metrics, "gradient_left")[-RECENT:]),
        n_pairs=int(np.nan_to_num(_last(column(rows, "n_pairs")))),
        accuracy=_last(column(rows, "implicit_accuracy")),
        low=_last(column(rows, "low")),
        high=_last(column(rows, "high")),
        chosen=_last(error_changes(rows, "chosen_error")),
        rejected=_last(error_changes(rows, "rejected_error")),
        best_step=best_step(validation) or 0,
        fallen=float(fallen),
    )


def _diverging(shown: Shown) -> Verdict | None:
    grown = shown.loss >= LOSS_GROWN * shown.first_loss and shown.norm >= NORM_GROWN * shown.first_norm
    if not (grown or shown.chosen >= FAR):
        return None
    reason = (
        f"the loss went from {shown.first_loss:.3g} to {shown.loss:.3g} "
        f"and the gradient norm from {shown.first_norm:.3g} to {shown.norm:.3g}"
    )
    if math.isfinite(shown.chosen):
        reason = f"the held-out error of chosen pictures is {shown.chosen:+.1%} against the reference's; " + reason
    beta = ", or raise --beta-dpo" if shown.preference else ""
    return Verdict("diverging", reason, f"begin anew with {_rate(shown, 1 / 10)}{beta}")


def _driven_by_rejected(shown: Shown) -> Verdict | None:
    if not (shown.preference and shown.rejected > shown.chosen >= WORSE):
        return None
    return Verdict(
        "driven by the rejected picture",
        "both held-out errors rise against the reference's, the rejected one faster: "
        f"chosen {shown.chosen:+.1%}, rejected {shown.rejected:+.1%}",
        f"--safeguard, or three times the --beta-dpo, or {_rate(shown, 1 / 3)}",
    )


def _overfitting(shown: Shown) -> Verdict | None:
    if shown.preference:
        gap = shown.train_accuracy - shown.accuracy
        if shown.train_accuracy < HIGH or not (shown.fallen >= FALLEN or gap >= GAP):
            return None
        reason = (
            f"held-out implicit accuracy is {shown.accuracy:.1%} after {shown.accuracy + shown.fallen:.1%} at step "
            f"{shown.best_step}, its best; it is {shown.train_accuracy:.1%} on the pairs that are trained on"
        )
    else:
        if not shown.fallen >= RISEN:
            return None
        reason = (
            f"the held-out error of chosen pictures rose by {shown.fallen:.1%} since step {shown.best_step}, its best"
        )
    stop = f"--max-train-steps {shown.best_step}, or " if shown.best_step and shown.fallen > 0 else ""
    return Verdict("overfitting", reason, f"{stop}more pairs: label more prompts, or loosen --where")


def _saturated(shown: Shown) -> Verdict | None:
    if shown.gradient_left <= LITTLE_LEFT:
        stop = f"stop at step {shown.step} or earlier"
        far = shown.chosen >= WORSE  # and a lower beta would let it go farther
        return Verdict(
            "saturated",
            f"{shown.gradient_left:.2f} of the gradient's weight is left, of 0.50 at the start: "
            f"implicit accuracy is {shown.train_accuracy:.1%} on the pairs that are trained on",
            stop if far else f"{stop}, or begin anew with a third of the --beta-dpo",
        )
    # where beta is far too high no weight is small: pairs got wrong keep all of it, and the loss counts their logits
    near = max(abs(shown.chosen), abs(shown.rejected)) < WORSE
    if shown.preference and near and shown.loss >= LOSS_GROWN * shown.first_loss:
        return Verdict(
            "saturated",
            f"the loss went from {shown.first_loss:.3g} to {shown.loss:.3g} though the held-out errors hardly left the "
            f"reference's (chosen {shown.chosen:+.2%}, rejected {shown.rejected:+.2%}): every pair's logit is large",
            "begin anew with a tenth of the --beta-dpo",
        )
    return None


# The worst first.
_FAULTS = (_driven_by_rejected, _overfitting, _saturated)


def _not_learning(shown: Shown) -> Verdict | None:
    if shown.steps_at_full_rate < MIN_STEPS or shown.n_pairs < MIN_PAIRS:
        return None
    if shown.high < 0.5:
        return Verdict(
            "not learning",
            f"held-out implicit accuracy lies below one half: {_interval(shown)}",
            f"look whether chosen and rejected are the right way round, then {_rate(shown, 1 / 3)}",
        )
    moved = max(abs(shown.chosen), abs(shown.rejected)) if shown.preference else abs(shown.chosen)
    if shown.low > 0.5 or not moved < STILL:
        return None
    accuracy = f"held-out implicit accuracy is {_interval(shown)}, " if shown.preference else ""
    return Verdict(
        "not learning",
        f"{accuracy}the held-out errors moved by {moved:.3%} of the reference's in {shown.step} steps",
        _rate(shown, 10),
    )


def _too_early(shown: Shown) -> Verdict | None:
    if shown.steps_at_full_rate < MIN_STEPS:
        return Verdict(
            "too early to say",
            f"{shown.steps_at_full_rate} steps at the full learning rate, {MIN_STEPS} are the least",
            f"wait, or --max-train-steps {shown.step - shown.steps_at_full_rate + 2 * MIN_STEPS} or more",
        )
    if shown.n_pairs < MIN_PAIRS:
        return Verdict(
            "too early to say",
            f"{shown.n_pairs} held-out pairs, {MIN_PAIRS} are the least",
            "label more prompts, or loosen --where: one prompt in twenty is held out",
        )
    if shown.preference and not shown.low > 0.5:
        return Verdict(
            "too early to say",
            f"held-out implicit accuracy cannot be told from one half: {_interval(shown)}",
            "more --max-train-steps while it rises; else label more prompts",
        )
    if not shown.preference and not shown.chosen < 0:
        return Verdict(
            "too early to say",
            f"the held-out error of chosen pictures is {shown.chosen:+.2%} against the first look's",
            f"more --max-train-steps, or {_rate(shown, 1 / 3)}",
        )
    return None


def _learning(shown: Shown) -> Verdict:
    errors = f"chosen {shown.chosen:+.2%}"
    reason = f"the held-out error of chosen pictures is {shown.chosen:+.2%} against the first look's"
    if shown.preference:
        errors += f", rejected {shown.rejected:+.2%}"
        reason = f"held-out implicit accuracy is {_interval(shown)}; errors against the reference's: {errors}"
    kept = f"keep the settings; the best look was at step {shown.best_step} of {shown.step}"
    return Verdict("learning", reason, kept)


def _interval(shown: Shown) -> str:
    return f"{shown.accuracy:.1%} [{shown.low:.1%}, {shown.high:.1%}], {shown.n_pairs} pairs"


def _rate(shown: Shown, factor: float) -> str:
    words = f"{'higher' if factor > 1 else 'lower'} than {shown.learning_rate:.2g}"
    return f"--learning-rate {shown.learning_rate * factor:.1g} ({words})"


def _last(values: Floats) -> float:
    return float(values[-1]) if len(values) else math.nan


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
