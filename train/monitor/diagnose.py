"""Is it learning? What the two tables of a run show, in words, with the option to change.

Pure functions over the rows of metrics.csv and validation.csv, as csv reads them or as the loop has them; an absent or empty
cell is nan. Errors are always relative to the reference's: 0.1 is 10 % above it.
"""

import math
from dataclasses import dataclass

from ...core.stats import MIN_PROMPTS, interval_text
from ...core.text import percent, plural
from ..config import TrainConfig
from .evidence import MIN_PAIRS, MIN_STEPS, RunSummary, summarize
from .tables import Rows

# The thresholds were chosen on runs of the built-in world with known faults; what those runs showed stands beside them.
STILL = 0.001  # errors moved by 0.0002 when the learning rate was 75 times too low, by 0.003 and more in healthy runs
WORSE = 0.02  # the chosen error rose by at most 0.012 in healthy runs, by 0.2 when beta was 25 times too low
FAR = 0.5  # the chosen error rose by 3 within 20 steps when the learning rate was 13 times too high
DOUBLED = 1.0  # rise of the chosen error that counts as diverging on too few held-out pairs or prompts
LOSS_GROWN = 2.0  # times the first row's; 8 to 19 in runs that diverged
NORM_GROWN = 5.0  # times the first row's; 18 to 140 in runs that diverged, below 2 in others
LITTLE_WEIGHT = 0.1  # mean DPO weight, which is 1/2 at the start
HIGH = 0.75  # implicit accuracy on the training pairs; 0.87 when 68 pairs were memorized, 0.62 in a healthy run
FALLEN = 0.05  # of implicit accuracy below its best pass; passes over 42 pairs vary by about as much
GAP = 0.2  # of implicit accuracy between held-out and training pairs; 0.25 when 68 pairs were memorized
RISEN = 0.02  # of the held-out chosen error above its best pass, for losses without preferences

# What to begin with when both errors rise.
SAFEGUARD = 0.9  # mu of the SDPO paper for Stable Diffusion 1.5
ANCHOR = 4.0  # times the first slope of the loss, so that it is beta for dpo
SFT_WEIGHT = 0.4  # likewise, a tenth of beta

MORE_PAIRS = "label more prompts, or relax --where"


@dataclass(frozen=True)
class Diagnosis:
    """One finding about a run."""

    name: str
    reason: str
    """The numbers it rests on."""
    advice: str
    """The option to change, and which way."""


@dataclass(frozen=True)
class _Run:
    """What a rule looks at."""

    summary: RunSummary
    config: TrainConfig | None

    def rate(self, factor: float) -> str:
        """The option with that multiple of the learning rate as the user gave it: what --scale-lr makes of it cannot be typed."""
        return _multiple("--learning-rate", self.config and self.config.learning_rate, factor)

    def beta(self, factor: float) -> str:
        """The option with that multiple of beta."""
        return _multiple("--beta", self.config and self.config.resolved_beta, factor)

    def regularizers(self) -> list[str]:
        """The options that keep the chosen error down and go with the other settings."""
        config = self.config
        if config is None:
            return [f"--safeguard {SAFEGUARD:g}", "--sft-weight", "--anchor"]
        beta, slope = config.resolved_beta, config.method.first_slope
        if not config.method.pairwise or beta is None or slope is None:
            return []
        options = []
        if config.safeguard is None:
            options.append(f"--safeguard {SAFEGUARD:g}")
        weights = [("--sft-weight", config.sft_weight, SFT_WEIGHT)]
        if not config.reference_draws:  # which keep no prediction to be anchored to
            weights.append(("--anchor", config.anchor, ANCHOR))
        return options + [
            _multiple(name, weight, THREEFOLD) if weight else f"{name} {_rounded(start * slope(beta))}"
            for name, weight, start in weights
        ]


TENTH, THIRD, THREEFOLD, TENFOLD = 1 / 10, 1 / 3, 3, 10
_TIMES = {TENTH: "a tenth of", THIRD: "a third of", THREEFOLD: "three times", TENFOLD: "ten times"}


def _multiple(option: str, value: float | None, factor: float) -> str:
    """An option with a multiple of its value, in words if that is not known."""
    if value is None:
        return f"{_TIMES[factor]} the {option}"
    return f"{option} {_rounded(value * factor)} ({'higher' if factor > 1 else 'lower'} than {value:g})"


def _rounded(value: float) -> str:
    """Two digits, without an exponent if the number is short: 1500, 0.0004."""
    return f"{float(f'{value:.2g}'):g}"


def diagnose(metrics: Rows, validation: Rows, config: TrainConfig | None = None) -> list[Diagnosis]:
    """What the tables show, the worst first; never empty.

    Args:
        config: settings of the run; without them advice names multiples.
    """
    run = _Run(summarize(metrics, validation), config)
    if (diverging := _diverging(run)) is not None:
        return [diverging]  # it explains whatever else the numbers show
    if (too_early := _too_early(run.summary)) is not None:
        return [too_early]
    faults = [diagnosis for rule in _FAULTS if (diagnosis := rule(run)) is not None]
    # beside a fault, "not learning" would ask for the opposite of what the fault asks for
    return faults or [_not_learning(run) or _undecided(run) or _learning(run)]


def _diverging(run: _Run) -> Diagnosis | None:
    summary = run.summary
    reasons = []
    if summary.not_finite:
        reasons.append(f"the {summary.not_finite} is not a finite number")
    if math.inf > summary.chosen_change >= (FAR if summary.enough_held_out else DOUBLED):
        reasons.append(
            f"the held-out error of chosen images is {percent(summary.chosen_change, 1, '+')} relative to the reference's"
        )
    # a loss that grows while the errors stay near the reference's is saturated instead
    near = summary.uses_preferences and summary.enough_held_out and _is_near(summary)
    grad_norm_has_grown = summary.grad_norm >= NORM_GROWN * summary.first_grad_norm > 0
    if summary.step >= MIN_STEPS and _loss_has_grown(run) and grad_norm_has_grown and not near:
        reasons.append(
            f"the loss went from {summary.first_loss:.3g} to {summary.loss:.3g} "
            f"and the gradient norm from {summary.first_grad_norm:.3g} to {summary.grad_norm:.3g}"
        )
    if not reasons:
        return None
    beta = ", or raise --beta" if summary.uses_preferences else ""
    return Diagnosis("diverging", "; ".join(reasons), f"start again with {run.rate(TENTH)}{beta}")


def _loss_has_grown(run: _Run) -> bool:
    if run.config is not None and run.config.method.starts_at_zero:
        return False  # any number is many times the first one
    return run.summary.loss >= LOSS_GROWN * run.summary.first_loss > 0


def _is_near(summary: RunSummary) -> bool:
    """Whether both held-out errors are about the reference's."""
    return max(abs(summary.chosen_change), abs(summary.rejected_change)) < WORSE


def _too_early(summary: RunSummary) -> Diagnosis | None:
    if summary.steps_at_full_rate < MIN_STEPS:
        needed = summary.step - summary.steps_at_full_rate + 2 * MIN_STEPS
        return Diagnosis(
            "too early to say",
            f"{summary.steps_at_full_rate} steps since the learning rate was highest, at least {MIN_STEPS} are needed",
            f"train longer: --max-train-steps {needed} or more",
        )
    few = [
        f"{n} held-out {what}, at least {least} are needed"
        for n, least, what in ((summary.n_pairs, MIN_PAIRS, "pairs"), (summary.n_prompts, MIN_PROMPTS, "prompts"))
        if n < least
    ]
    if few:
        return Diagnosis("too early to say", few[0], f"{MORE_PAIRS}: one prompt in twenty is held out")
    return None


def _pushed_away(run: _Run) -> Diagnosis | None:
    """The model gets worse at everything. Implicit accuracy and margin do not tell: they compare the two errors."""
    summary = run.summary
    if not (summary.uses_preferences and min(summary.chosen_change, summary.rejected_change) >= WORSE):
        return None
    chosen, rejected = percent(summary.chosen_change, 1, "+"), percent(summary.rejected_change, 1, "+")
    faster = (
        ", the rejected one faster" if summary.rejected_change > summary.chosen_change and chosen != rejected else ""
    )
    reason = f"both held-out errors rise above the reference's{faster}: chosen {chosen}, rejected {rejected}"
    if summary.accuracy_low > 0.5:
        reason += f"; held-out implicit accuracy, {percent(summary.accuracy)}, does not show it"
    options = [run.beta(THREEFOLD), run.rate(THIRD), *run.regularizers()]
    advice = f"start again with one of {', '.join(options[:-1])} or {options[-1]}"
    if summary.accuracy_high < 0.5:
        advice = f"check that chosen and rejected are not swapped, then {advice}"
    return Diagnosis("both images are pushed away", reason, advice)


def _overfitting(run: _Run) -> Diagnosis | None:
    summary = run.summary
    stop = f"--max-train-steps {summary.best_step}, or " if summary.best_step else ""
    if not summary.uses_preferences:
        if not summary.chosen_rise >= RISEN:
            return None
        rise = f"{percent(summary.chosen_rise)} since step {summary.best_step}, its best"
        return Diagnosis("overfitting", f"the held-out error of chosen images rose by {rise}", stop + MORE_PAIRS)
    # a fall or a gap inside the last interval does not count, nor does anything if all intervals contain 1/2
    accuracy, high = summary.accuracy, summary.accuracy_high
    fallen = (
        summary.best_accuracy - accuracy >= FALLEN and summary.best_accuracy > high and summary.best_accuracy_low > 0.5
    )
    behind = summary.train_accuracy - accuracy >= GAP and summary.train_accuracy > high
    if summary.train_accuracy < HIGH or not (fallen or (behind and summary.excludes_one_half)):
        return None
    before = f", down from {percent(summary.best_accuracy)} at step {summary.best_step}, its best" if fallen else ""
    reason = f"held-out implicit accuracy is {_accuracy(summary)}{before}; {_on_training_pairs(summary)}"
    return Diagnosis("overfitting", reason, (stop if fallen else "") + MORE_PAIRS)


def _saturated(run: _Run) -> Diagnosis | None:
    summary = run.summary
    if summary.dpo_weight <= LITTLE_WEIGHT:
        stop = f"stop at step {summary.step} or earlier"
        far = summary.chosen_change >= WORSE  # and a lower beta would let it go farther
        return Diagnosis(
            "saturated",
            f"the mean DPO weight is {summary.dpo_weight:.2f}, 0.50 at the start: implicit accuracy is "
            f"{percent(summary.train_accuracy)} on the training pairs",
            stop if far else f"{stop}, or start again with {run.beta(THIRD)}",
        )
    # if beta is far too high no mean weight is small: wrong pairs keep all of theirs, and the loss counts their logits
    if summary.uses_preferences and _is_near(summary) and _loss_has_grown(run):
        return Diagnosis(
            "saturated",
            f"the loss went from {summary.first_loss:.3g} to {summary.loss:.3g} although the held-out errors are still near "
            f"the reference's (chosen {percent(summary.chosen_change, 2, '+')}, rejected {percent(summary.rejected_change, 2, '+')}): every pair's "
            "logit is large",
            f"start again with {run.beta(TENTH)}",
        )
    return None


# The worst first.
_FAULTS = (_pushed_away, _overfitting, _saturated)


def _not_learning(run: _Run) -> Diagnosis | None:
    summary = run.summary
    if summary.uses_preferences and summary.accuracy_high < 0.5:
        return Diagnosis(
            "not learning",
            f"held-out implicit accuracy is below one half: {_accuracy(summary)}",
            f"check that chosen and rejected are not swapped, then {run.rate(THIRD)}",
        )
    moved = abs(summary.chosen_change)
    if summary.uses_preferences:
        moved = max(moved, abs(summary.rejected_change))
    if (summary.uses_preferences and summary.accuracy_low > 0.5) or not moved < STILL:
        return None
    accuracy = f"held-out implicit accuracy is {_accuracy(summary)}, " if summary.uses_preferences else ""
    return Diagnosis(
        "not learning",
        f"{accuracy}the held-out errors moved by {percent(moved, 3)} of the reference's in {summary.step} steps",
        run.rate(TENFOLD),
    )


def _undecided(run: _Run) -> Diagnosis | None:
    summary = run.summary
    if summary.uses_preferences and not summary.accuracy_low > 0.5:
        reason = f"held-out implicit accuracy cannot be distinguished from one half: {_accuracy(summary)}"
        advice = "more --max-train-steps while it rises, then label more prompts"
        if summary.train_accuracy >= HIGH:
            reason += f"; {_on_training_pairs(summary)}"
            advice = f"{MORE_PAIRS}: the training pairs are already learned"
        return Diagnosis("too early to say", reason, advice)
    if not summary.uses_preferences and not summary.chosen_change < 0:
        return Diagnosis(
            "too early to say", _since_first_pass(summary), f"more --max-train-steps, or {run.rate(THIRD)}"
        )
    return None


def _learning(run: _Run) -> Diagnosis:
    summary = run.summary
    reason = _since_first_pass(summary)
    if summary.uses_preferences:
        reason = (
            f"held-out implicit accuracy is {_accuracy(summary)}; errors relative to the reference's: "
            f"chosen {percent(summary.chosen_change, 2, '+')}, rejected {percent(summary.rejected_change, 2, '+')}"
        )
    advice = f"keep the settings; the best validation pass was at step {summary.best_step} of {summary.step}"
    return Diagnosis("learning", reason, advice)


def _accuracy(summary: RunSummary) -> str:
    interval = interval_text(summary.accuracy_low, summary.accuracy_high, summary.n_prompts)
    return f"{percent(summary.accuracy)} ({interval}; {plural(summary.n_pairs, 'pair')} of {plural(summary.n_prompts, 'prompt')})"


def _on_training_pairs(summary: RunSummary) -> str:
    return f"it is {percent(summary.train_accuracy)} on the training pairs"


def _since_first_pass(summary: RunSummary) -> str:
    return f"the held-out error of chosen images is {percent(summary.chosen_change, 2, '+')} relative to the first validation pass"
