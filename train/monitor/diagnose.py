"""Is it learning? What the two tables of a run say, in words, with the option to change.

Pure functions over the rows of metrics.csv and validation.csv, as csv gives them or as the loop has them; an absent or
empty cell is nan. Errors are compared with the reference's, never taken as they are: 0.1 is 10 % above the reference's.
"""

import math
from dataclasses import dataclass

from .evidence import MIN_PAIRS, MIN_STEPS, Shown, summarize
from .tables import Rows

# The thresholds were chosen on runs of the built-in world with known faults; what those runs showed stands beside them.
STILL = 0.001  # errors moved by 0.0002 where the learning rate was 75 times too low, by 0.003 and more in healthy runs
WORSE = 0.02  # the chosen error rose by at most 0.007 in healthy runs, by 0.2 where beta was 25 times too low
FAR = 0.5  # the chosen error rose by 3 within 20 steps where the learning rate was 13 times too high
DOUBLED = 1.0  # of the chosen error: what fewer than MIN_PAIRS held-out pairs must show
LOSS_GROWN = 2.0  # times the first row's; 8 to 19 where the run diverged
NORM_GROWN = 5.0  # times the first row's; 18 to 140 where the run diverged, below 2 elsewhere
LITTLE_LEFT = 0.1  # of the gradient's weight, which is 1/2 at the start
HIGH = 0.75  # implicit accuracy on the pairs that are trained on; 0.87 where 68 pairs were learned by heart, 0.62 in a healthy run
FALLEN = 0.05  # of implicit accuracy below its best look; looks at 42 pairs stray by about as much
GAP = 0.2  # of implicit accuracy from held-out to training pairs; 0.25 where 68 pairs were learned by heart
RISEN = 0.02  # of the held-out chosen error above its best look, where there is no preference


@dataclass(frozen=True)
class Verdict:
    """One finding about a run."""

    name: str
    reason: str
    """The numbers it rests on."""
    lever: str
    """The option to change, and which way."""


@dataclass(frozen=True)
class _Run:
    """What a rule looks at."""

    shown: Shown
    learning_rate: float | None
    """As the user gave it: what the scheduler or --scale-lr make of it cannot be typed."""

    def rate(self, factor: float) -> str:
        """The option with that multiple of the learning rate."""
        if self.learning_rate is None:
            return f"{_TIMES[factor]} the --learning-rate"
        way = "higher" if factor > 1 else "lower"
        return f"--learning-rate {self.learning_rate * factor:.2g} ({way} than {self.learning_rate:g})"


TENTH, THIRD, TENFOLD = 1 / 10, 1 / 3, 10
_TIMES = {TENTH: "a tenth of", THIRD: "a third of", TENFOLD: "ten times"}


def verdicts(metrics: Rows, validation: Rows, learning_rate: float | None = None) -> list[Verdict]:
    """What the tables say, the worst first; never empty.

    Args:
        learning_rate: as it was given; without it advice is told as a multiple.
    """
    run = _Run(summarize(metrics, validation), learning_rate)
    if (diverging := _diverging(run)) is not None:
        return [diverging]  # whatever else the numbers show comes of that
    if (little := _little(run.shown)) is not None:
        return [little]
    found = [verdict for rule in _FAULTS if (verdict := rule(run)) is not None]
    # with a fault beside it "not learning" would ask for the opposite of what the fault asks for
    return found or [_not_learning(run) or _undecided(run) or _learning(run)]


def _diverging(run: _Run) -> Verdict | None:
    shown = run.shown
    reasons = []
    if shown.broken:
        reasons.append(f"the {shown.broken} is not a finite number")
    if math.inf > shown.chosen >= (FAR if shown.n_pairs >= MIN_PAIRS else DOUBLED):
        reasons.append(f"the held-out error of chosen pictures is {shown.chosen:+.1%} against the reference's")
    near = shown.preference and shown.n_pairs >= MIN_PAIRS and _is_near(shown)  # saturated, then
    if (
        shown.step >= MIN_STEPS
        and _loss_has_grown(shown)
        and shown.norm >= NORM_GROWN * shown.first_norm > 0
        and not near
    ):
        reasons.append(
            f"the loss went from {shown.first_loss:.3g} to {shown.loss:.3g} "
            f"and the gradient norm from {shown.first_norm:.3g} to {shown.norm:.3g}"
        )
    if not reasons:
        return None
    beta = ", or raise --beta" if shown.preference else ""
    return Verdict("diverging", "; ".join(reasons), f"begin anew with {run.rate(TENTH)}{beta}")


def _loss_has_grown(shown: Shown) -> bool:
    return shown.loss >= LOSS_GROWN * shown.first_loss > 0


def _is_near(shown: Shown) -> bool:
    """Whether both held-out errors are about the reference's."""
    return max(abs(shown.chosen), abs(shown.rejected)) < WORSE


def _little(shown: Shown) -> Verdict | None:
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
    return None


def _driven_by_rejected(run: _Run) -> Verdict | None:
    shown = run.shown
    chosen, rejected = f"{shown.chosen:+.1%}", f"{shown.rejected:+.1%}"
    if not (shown.preference and shown.rejected > shown.chosen >= WORSE) or chosen == rejected:
        return None
    return Verdict(
        "driven by the rejected picture",
        "both held-out errors rise against the reference's, the rejected one faster: "
        f"chosen {chosen}, rejected {rejected}",
        f"--safeguard, or three times the --beta, or {run.rate(THIRD)}",
    )


def _overfitting(run: _Run) -> Verdict | None:
    shown = run.shown
    more = "more pairs: label more prompts, or loosen --where"
    stop = f"--max-train-steps {shown.best_step}, or " if shown.best_step else ""
    if not shown.preference:
        if not shown.risen >= RISEN:
            return None
        reason = (
            f"the held-out error of chosen pictures rose by {shown.risen:.1%} since step {shown.best_step}, its best"
        )
        return Verdict("overfitting", reason, stop + more)
    # what the interval of the last look holds is no fall, nor a distance; where all of them hold 1/2 nothing was learned
    fallen = shown.best - shown.accuracy >= FALLEN and shown.best > shown.high and shown.best_low > 0.5
    behind = shown.train_accuracy - shown.accuracy >= GAP and shown.train_accuracy > shown.high
    if shown.train_accuracy < HIGH or not (fallen or (behind and shown.left_one_half)):
        return None
    before = f" after {shown.best:.1%} at step {shown.best_step}, its best" if fallen else ""
    reason = (
        f"held-out implicit accuracy is {_interval(shown)}{before}; "
        f"it is {shown.train_accuracy:.1%} on the pairs that are trained on"
    )
    return Verdict("overfitting", reason, (stop if fallen else "") + more)


def _saturated(run: _Run) -> Verdict | None:
    shown = run.shown
    if shown.dpo_weight <= LITTLE_LEFT:
        stop = f"stop at step {shown.step} or earlier"
        far = shown.chosen >= WORSE  # and a lower beta would let it go farther
        return Verdict(
            "saturated",
            f"{shown.dpo_weight:.2f} of the gradient's weight is left, of 0.50 at the start: "
            f"implicit accuracy is {shown.train_accuracy:.1%} on the pairs that are trained on",
            stop if far else f"{stop}, or begin anew with a third of the --beta",
        )
    # where beta is far too high no weight is small: pairs got wrong keep all of it, and the loss counts their logits
    if shown.preference and _is_near(shown) and _loss_has_grown(shown):
        return Verdict(
            "saturated",
            f"the loss went from {shown.first_loss:.3g} to {shown.loss:.3g} though the held-out errors hardly left the "
            f"reference's (chosen {shown.chosen:+.2%}, rejected {shown.rejected:+.2%}): every pair's logit is large",
            "begin anew with a tenth of the --beta",
        )
    return None


# The worst first.
_FAULTS = (_driven_by_rejected, _overfitting, _saturated)


def _not_learning(run: _Run) -> Verdict | None:
    shown = run.shown
    if shown.preference and shown.high < 0.5:
        return Verdict(
            "not learning",
            f"held-out implicit accuracy lies below one half: {_interval(shown)}",
            f"look whether chosen and rejected are the right way round, then {run.rate(THIRD)}",
        )
    moved = max(abs(shown.chosen), abs(shown.rejected)) if shown.preference else abs(shown.chosen)
    if (shown.preference and shown.low > 0.5) or not moved < STILL:
        return None
    accuracy = f"held-out implicit accuracy is {_interval(shown)}, " if shown.preference else ""
    return Verdict(
        "not learning",
        f"{accuracy}the held-out errors moved by {moved:.3%} of the reference's in {shown.step} steps",
        run.rate(TENFOLD),
    )


def _undecided(run: _Run) -> Verdict | None:
    shown = run.shown
    if shown.preference and not shown.low > 0.5:
        reason = f"held-out implicit accuracy cannot be told from one half: {_interval(shown)}"
        lever = "more --max-train-steps while it rises; else label more prompts"
        if shown.train_accuracy >= HIGH:
            reason += f"; it is {shown.train_accuracy:.1%} on the pairs that are trained on"
            lever = "label more prompts, or loosen --where: the pairs that are trained on are learned"
        return Verdict("too early to say", reason, lever)
    if not shown.preference and not shown.chosen < 0:
        return Verdict(
            "too early to say",
            f"the held-out error of chosen pictures is {shown.chosen:+.2%} against the first look's",
            f"more --max-train-steps, or {run.rate(THIRD)}",
        )
    return None


def _learning(run: _Run) -> Verdict:
    shown = run.shown
    errors = f"chosen {shown.chosen:+.2%}"
    reason = f"the held-out error of chosen pictures is {shown.chosen:+.2%} against the first look's"
    if shown.preference:
        errors += f", rejected {shown.rejected:+.2%}"
        reason = f"held-out implicit accuracy is {_interval(shown)}; errors against the reference's: {errors}"
    kept = f"keep the settings; the best look was at step {shown.best_step} of {shown.step}"
    return Verdict("learning", reason, kept)


def _interval(shown: Shown) -> str:
    return f"{shown.accuracy:.1%} [{shown.low:.1%}, {shown.high:.1%}], {shown.n_pairs} pairs"
