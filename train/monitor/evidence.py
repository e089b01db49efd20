"""What the tables of a run show at its end, and whether that is enough to say anything about it."""

import math
from dataclasses import dataclass

import numpy as np

from ...core.stats import MIN_PROMPTS
from .tables import Floats, Rows, column, error_changes, validation_passes

# What every diagnosis but "diverging" needs, and early stopping too. Chosen on runs of the built-in world.
MIN_STEPS = 50  # at full learning rate: a healthy run's interval excluded 1/2 only from step 160 on
MIN_PAIRS = 20  # held-out: with twice as many an interval of implicit accuracy was still 0.23 wide
RECENT = 5  # rows of metrics.csv, 50 steps: one row alone varies by 0.05 in implicit accuracy


@dataclass(frozen=True)
class RunSummary:
    """The numbers at the end of a run's tables; nan if the tables do not have them."""

    step: int
    steps_at_full_rate: int
    """Since the learning rate was highest, so that warm-up does not count."""
    uses_preferences: bool
    """Whether the loss compares two images with a reference; sft and mapo are diagnosed by the chosen error."""
    not_finite: str
    """What is not a finite number, such as "loss"; empty if everything is."""
    first_loss: float
    loss: float
    """Mean of the last RECENT rows, not counting the first row; so are the other numbers of training."""
    first_grad_norm: float
    grad_norm: float
    train_accuracy: float
    """Implicit accuracy on the training pairs."""
    dpo_weight: float
    n_pairs: int
    n_prompts: int
    """Held-out pairs and prompts."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    """Held-out implicit accuracy and its interval."""
    chosen_change: float
    """Change of the held-out chosen error, relative to the reference's, or to the first validation pass without a reference."""
    rejected_change: float
    best_step: int
    """Step of the validation pass with the highest implicit accuracy; without preferences, the lowest chosen error."""
    best_accuracy: float
    best_accuracy_low: float
    """Implicit accuracy in that pass, and the lower end of its interval."""
    chosen_rise: float
    """Rise of the chosen error since its lowest validation pass."""

    @property
    def enough_held_out(self) -> bool:
        return self.n_pairs >= MIN_PAIRS and self.n_prompts >= MIN_PROMPTS

    @property
    def enough(self) -> bool:
        """Enough steps, held-out pairs and held-out prompts for a diagnosis."""
        return self.steps_at_full_rate >= MIN_STEPS and self.enough_held_out

    @property
    def excludes_one_half(self) -> bool:
        """Whether the interval of held-out implicit accuracy, now or in the best pass, excludes 1/2."""
        return self.accuracy_low > 0.5 or self.accuracy_high < 0.5 or self.best_accuracy_low > 0.5


def summarize(metrics: Rows, validation: Rows) -> RunSummary:
    """The numbers that diagnoses rest on."""
    passes = validation_passes(validation)
    steps, losses = column(metrics, "step"), column(metrics, "loss")
    step = int(max([0, *steps, *column(passes, "step")]))
    accuracy, accuracy_low = column(passes, "implicit_accuracy"), column(passes, "implicit_accuracy_low")
    chosen = error_changes(passes, "chosen_error")
    uses_preferences = _uses_preferences(metrics)
    best = _best(passes, uses_preferences)
    return RunSummary(
        step=step,
        steps_at_full_rate=step - _full_rate_since(steps, column(metrics, "learning_rate")),
        uses_preferences=uses_preferences,
        not_finite=_not_finite(metrics, passes),
        first_loss=_first(losses),
        loss=_recent(losses),
        first_grad_norm=_first(column(metrics, "grad_norm")),
        grad_norm=_recent(column(metrics, "grad_norm")),
        train_accuracy=_recent(column(metrics, "implicit_accuracy")),
        dpo_weight=_recent(column(metrics, "dpo_weight")),
        n_pairs=int(np.nan_to_num(_last(column(passes, "n_pairs")))),
        n_prompts=int(np.nan_to_num(_last(column(passes, "n_prompts")))),
        accuracy=_last(accuracy),
        accuracy_low=_last(accuracy_low),
        accuracy_high=_last(column(passes, "implicit_accuracy_high")),
        chosen_change=_last(chosen),
        rejected_change=_last(error_changes(passes, "rejected_error")),
        best_step=0 if best is None else int(column(passes, "step")[best]),
        best_accuracy=math.nan if best is None else float(accuracy[best]),
        best_accuracy_low=math.nan if best is None else float(accuracy_low[best]),
        chosen_rise=float(chosen[-1] - np.nanmin(chosen)) if np.isfinite(chosen).any() else math.nan,
    )


def should_stop(metrics: Rows, validation: Rows, patience: int) -> bool:
    """Whether none of the last `patience` validation passes was better than the best one before them, on enough evidence.

    Too few steps, held-out pairs or held-out prompts are not enough, nor is an interval of implicit accuracy that always
    contained one half. The pass at step 0 counts: a model that is surely worse than its reference is stopped too.
    """
    if patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience}")
    summary = summarize(metrics, validation)
    if not summary.enough or (summary.uses_preferences and not summary.excludes_one_half):
        return False
    values = _merits(validation_passes(validation), summary.uses_preferences)
    values = values[np.isfinite(values)]
    return len(values) > patience and bool(values[-patience:].max() <= values[:-patience].max())


def _merits(passes: Rows, uses_preferences: bool) -> Floats:
    """Higher is better: held-out implicit accuracy, or how far the chosen error fell."""
    return column(passes, "implicit_accuracy") if uses_preferences else -error_changes(passes, "chosen_error")


def _best(passes: Rows, uses_preferences: bool) -> int | None:
    """Index of the best validation pass, the earliest of several."""
    values = _merits(passes, uses_preferences)
    return int(np.nanargmax(values)) if np.isfinite(values).any() else None


def _uses_preferences(metrics: Rows) -> bool:
    return bool(np.isfinite(column(metrics, "implicit_accuracy")).any())


def _full_rate_since(steps: Floats, rates: Floats) -> int:
    """The step of the first row with the highest learning rate; 0 if that is the first row of all."""
    if not np.isfinite(rates).any():
        return 0
    peak = int(np.argmax(rates >= np.nanmax(rates) * (1 - 1e-6)))  # rows are means, which round
    return int(steps[peak]) if peak else 0


def _not_finite(metrics: Rows, passes: Rows) -> str:
    """A cell that is filled and yet not a finite number. Gradient norms do not count: fp16 skips those that overflow."""
    cells = [("loss", row.get("loss")) for row in metrics[-1:]]
    cells += [
        (f"held-out {name} error", row.get(f"{name}_error")) for row in passes[-1:] for name in ("chosen", "rejected")
    ]
    return next((what for what, cell in cells if cell not in (None, "") and not math.isfinite(float(cell))), "")


def _first(values: Floats) -> float:
    return float(values[0]) if len(values) else math.nan


def _last(values: Floats) -> float:
    return float(values[-1]) if len(values) else math.nan


def _recent(values: Floats) -> float:
    recent = values[1:][-RECENT:]
    finite = recent[np.isfinite(recent)]
    return float(finite.mean()) if len(finite) else math.nan
