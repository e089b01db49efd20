"""What the tables of a run show at their end, and whether that is enough to say anything of it."""

import math
from dataclasses import dataclass

import numpy as np

from .tables import Floats, Rows, column, error_changes, looks

# What any verdict but "diverging" needs, and early stopping too. Chosen on runs of the built-in world.
MIN_STEPS = 50  # at full learning rate: a healthy run's interval left 1/2 behind only at step 160
MIN_PAIRS = 20  # held-out: twice as many still left an interval of implicit accuracy that was 0.23 wide
RECENT = 5  # rows of metrics.csv, 50 steps: one row alone strays by 0.05 in implicit accuracy


@dataclass(frozen=True)
class Shown:
    """What the tables show at their end; nan where they show nothing."""

    step: int
    steps_at_full_rate: int
    """Since the learning rate was highest, so that warm-up does not count."""
    preference: bool
    """Whether the loss compares two pictures with a reference; sft and mapo are judged by the chosen error."""
    broken: str
    """What is not a finite number, such as "loss"; empty where everything is."""
    first_loss: float
    loss: float
    """Mean of the last RECENT rows, the first one left out, as are all numbers of training."""
    first_norm: float
    norm: float
    train_accuracy: float
    dpo_weight: float
    n_pairs: int
    """Held-out ones."""
    accuracy: float
    low: float
    high: float
    chosen: float
    """Change of the held-out chosen error against the reference's, or against the first look where there is none."""
    rejected: float
    best_step: int
    """Of the look with the highest implicit accuracy; without preference, with the lowest chosen error."""
    best: float
    """Implicit accuracy then."""
    best_low: float
    risen: float
    """The chosen error since its lowest look."""

    @property
    def is_little(self) -> bool:
        """Too few steps or held-out pairs for any verdict."""
        return self.steps_at_full_rate < MIN_STEPS or self.n_pairs < MIN_PAIRS

    @property
    def left_one_half(self) -> bool:
        """Whether the interval of held-out implicit accuracy, now or at the best look, does not hold 1/2."""
        return self.low > 0.5 or self.high < 0.5 or self.best_low > 0.5


def summarize(metrics: Rows, validation: Rows) -> Shown:
    """The numbers that the verdicts rest on."""
    rows = looks(validation)
    steps, losses = column(metrics, "step"), column(metrics, "loss")
    step = int(max([0, *steps, *column(rows, "step")]))
    accuracy, chosen = column(rows, "implicit_accuracy"), error_changes(rows, "chosen_error")
    preference = _is_preference(metrics)
    best = _best(rows, preference)
    return Shown(
        step=step,
        steps_at_full_rate=step - _full_rate_since(steps, column(metrics, "learning_rate")),
        preference=preference,
        broken=_broken(metrics, rows),
        first_loss=_first(losses),
        loss=_recent(losses),
        first_norm=_first(column(metrics, "grad_norm")),
        norm=_recent(column(metrics, "grad_norm")),
        train_accuracy=_recent(column(metrics, "implicit_accuracy")),
        dpo_weight=_recent(column(metrics, "dpo_weight")),
        n_pairs=int(np.nan_to_num(_last(column(rows, "n_pairs")))),
        accuracy=_last(accuracy),
        low=_last(column(rows, "low")),
        high=_last(column(rows, "high")),
        chosen=_last(chosen),
        rejected=_last(error_changes(rows, "rejected_error")),
        best_step=0 if best is None else int(column(rows, "step")[best]),
        best=math.nan if best is None else float(accuracy[best]),
        best_low=math.nan if best is None else float(column(rows, "low")[best]),
        risen=float(chosen[-1] - np.nanmin(chosen)) if np.isfinite(chosen).any() else math.nan,
    )


def should_stop(metrics: Rows, validation: Rows, patience: int) -> bool:
    """Whether none of the last `patience` looks was better than the best one before them, and that can be told.

    It cannot with too few steps or held-out pairs, nor where the interval of implicit accuracy always held one half. The look
    at step 0 counts: a model that is surely worse than its reference is stopped too.
    """
    if patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience}")
    shown = summarize(metrics, validation)
    if shown.is_little or (shown.preference and not shown.left_one_half):
        return False
    values = _merits(looks(validation), shown.preference)
    values = values[np.isfinite(values)]
    return len(values) > patience and bool(values[-patience:].max() <= values[:-patience].max())


def _merits(rows: Rows, preference: bool) -> Floats:
    """Higher is better: held-out implicit accuracy, or how far the chosen error fell."""
    return column(rows, "implicit_accuracy") if preference else -error_changes(rows, "chosen_error")


def _best(rows: Rows, preference: bool) -> int | None:
    """The number of the earliest of the best looks."""
    values = _merits(rows, preference)
    return int(np.nanargmax(values)) if np.isfinite(values).any() else None


def _is_preference(metrics: Rows) -> bool:
    return bool(np.isfinite(column(metrics, "implicit_accuracy")).any())


def _full_rate_since(steps: Floats, rates: Floats) -> int:
    """The step of the first row with the highest learning rate; 0 where that is the first of all."""
    if not np.isfinite(rates).any():
        return 0
    peak = int(np.argmax(rates >= np.nanmax(rates) * (1 - 1e-6)))  # rows are means, which round
    return int(steps[peak]) if peak else 0


def _broken(metrics: Rows, rows: Rows) -> str:
    """A cell that is filled and yet not a finite number. Gradient norms do not count: fp16 skips those that overflow."""
    cells = [("loss", row.get("loss")) for row in metrics[-1:]]
    cells += [
        (f"held-out {name} error", row.get(f"{name}_error")) for row in rows[-1:] for name in ("chosen", "rejected")
    ]
    return next((what for what, cell in cells if cell not in (None, "") and not math.isfinite(float(cell))), "")


def _first(values: Floats) -> float:
    return float(values[0]) if len(values) else math.nan


def _last(values: Floats) -> float:
    return float(values[-1]) if len(values) else math.nan


def _recent(values: Floats) -> float:
    known = values[1:][-RECENT:]
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else math.nan
