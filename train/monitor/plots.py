"""A run as one image: training.png, plotted from metrics.csv and validation.csv."""

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...core.files import write_atomic
from ...core.text import percent
from ..config import TrainConfig
from .diagnose import Diagnosis, diagnose
from .tables import Floats, Rows, column, error_changes, read_rows, validation_passes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colors, which color-blind people can tell apart
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"


def plot_training(folder: Path, config: TrainConfig | None = None) -> Path:
    """Write `training.png` into the folder of a run; its path.

    A panel without numbers says so: a run may have no held-out pairs, and sft has no implicit accuracy.

    Args:
        config: settings of the run, for the advice.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, validation = read_rows(folder / "metrics.csv"), read_rows(folder / "validation.csv")
    figure = Figure(figsize=(16, 9), dpi=100)
    canvas = FigureCanvasAgg(figure)
    # fixed margins, wide enough for every tick label: measuring them all takes as long as plotting them
    grid = figure.add_gridspec(2, 3, left=0.068, right=0.985, bottom=0.075, top=0.945, wspace=0.38, hspace=0.3)
    _loss(figure.add_subplot(grid[0, 0]), metrics)
    _accuracy(figure.add_subplot(grid[0, 1]), metrics, validation)
    _errors(figure.add_subplot(grid[0, 2]), validation)
    gradient = grid[1, 0].subgridspec(2, 1, hspace=0.35)
    _dpo_weight(figure.add_subplot(gradient[0]), metrics)
    _norm(figure.add_subplot(gradient[1]), metrics)
    by_bin = grid[1, 1].subgridspec(2, 1, hspace=0.35)
    _bins(figure.add_subplot(by_bin[0]), validation)
    _bin_errors(figure.add_subplot(by_bin[1]), validation)
    _diagnoses(figure.add_subplot(grid[1, 2]), diagnose(metrics, validation, config))
    path, image = folder / "training.png", io.BytesIO()
    canvas.print_png(image)
    write_atomic(path, image.getvalue())
    return path


def _loss(axes: "Axes", metrics: Rows) -> None:
    _frame(axes, "Loss", "mean of ten steps", "step")
    if not _line(axes, metrics, column(metrics, "loss"), BLUE):
        _blank(axes)


def _accuracy(axes: "Axes", metrics: Rows, validation: Rows) -> None:
    passes = validation_passes(validation)
    low, high = column(passes, "implicit_accuracy_low"), column(passes, "implicit_accuracy_high")
    has_interval = np.isfinite(low).any()
    _frame(axes, "Implicit accuracy", "share of pairs", "step")
    trained = _line(axes, metrics, column(metrics, "implicit_accuracy"), GREY, "training pairs", linewidth=1)
    accuracy = column(passes, "implicit_accuracy")
    label = f"held-out pairs, {'95 %' if has_interval else 'no'} interval"
    held_out = _line(axes, passes, accuracy, BLUE, label, marker="o")
    if not (trained or held_out):
        return _blank(axes)
    if held_out:
        steps = column(passes, "step")
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
        best = np.nanargmax(accuracy)
        axes.plot(steps[best], accuracy[best], "o", color=BLUE, fillstyle="none", markersize=13, label="best pass")
    _level(axes, 0.5)
    axes.yaxis.set_major_formatter(_percent)
    axes.legend(frameon=False, fontsize=11)


def _errors(axes: "Axes", validation: Rows) -> None:
    passes = validation_passes(validation)
    reference = np.isfinite(column(passes, "ref_chosen_error")).any()
    _frame(axes, "Held-out errors", f"relative to the {'reference' if reference else 'first pass'}", "step")
    has_numbers = [
        _line(axes, passes, error_changes(passes, f"{name}_error"), color, name, marker=marker)
        for name, color, marker in (("chosen", BLUE, "o"), ("rejected", ORANGE, "s"))
    ]
    if not any(has_numbers):
        return _blank(axes)
    _level(axes, 0)
    axes.yaxis.set_major_formatter(_change)
    axes.legend(frameon=False, fontsize=11)


def _dpo_weight(axes: "Axes", metrics: Rows) -> None:
    _frame(axes, "Mean DPO weight, gradient norm", "DPO weight", "")
    if not _line(axes, metrics, column(metrics, "dpo_weight"), BLUE):
        return _blank(axes)
    _level(axes, 0.5)
    axes.set_ylim(0, 1)


def _norm(axes: "Axes", metrics: Rows) -> None:
    norms = column(metrics, "grad_norm")
    _frame(axes, "", "norm", "step")
    if not _line(axes, metrics, norms, BLUE):
        return _blank(axes)
    if np.nanmax(norms) > 10 * np.nanmin(norms) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(bottom=0)


def _bins(axes: "Axes", validation: Rows) -> None:
    rows = _last_bins(validation)
    last = max(column(validation, "step"), default=0)
    accuracy = column(rows, "implicit_accuracy")
    low, high = column(rows, "implicit_accuracy_low"), column(rows, "implicit_accuracy_high")
    _frame(axes, f"By timestep, at step {last:.0f}", "held-out", "")
    if not np.isfinite(accuracy).any():
        return _blank(axes)
    positions = np.arange(len(rows))
    axes.bar(positions, accuracy, color=BLUE, alpha=0.6, width=0.7, label="implicit accuracy")
    axes.vlines(positions, low, high, color="black", linewidth=1.5)
    axes.plot(positions, column(rows, "dpo_weight"), "D", color=ORANGE, markersize=5, label="mean DPO weight")
    axes.set_xticks(positions, [""] * len(rows))
    _level(axes, 0.5)
    axes.set_ylim(0, 1.25)
    axes.set_yticks([0, 0.5, 1])
    axes.yaxis.set_major_formatter(_percent)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper left")


def _bin_errors(axes: "Axes", validation: Rows) -> None:
    rows = _last_bins(validation)
    _frame(axes, "", "error minus the\nreference's", "timestep (higher: more noise)")
    changes = [column(rows, name) / column(rows, f"ref_{name}") - 1 for name in ("chosen_error", "rejected_error")]
    if not np.isfinite(changes).any():
        return _blank(axes)
    positions = np.arange(len(rows))
    for change, color, name, side in zip(changes, (BLUE, ORANGE), ("chosen", "rejected"), (-0.18, 0.18), strict=True):
        axes.bar(positions + side, change, color=color, alpha=0.7, width=0.34, label=name)
    edges = zip(column(rows, "timestep_low"), column(rows, "timestep_high"), strict=True)
    axes.set_xticks(positions, [f"{first:.0f}–{end:.0f}" for first, end in edges], fontsize=10 if len(rows) < 7 else 7)
    _level(axes, 0)
    axes.yaxis.set_major_formatter(_percent)
    axes.legend(frameon=False, fontsize=9, ncols=2)


def _last_bins(validation: Rows) -> Rows:
    """The rows of the timestep bins in the last validation pass."""
    last = max(column(validation, "step"), default=0)
    return [row for row in validation if row["bin"] != "all" and float(row["step"]) == last]


def _diagnoses(axes: "Axes", diagnoses: list[Diagnosis]) -> None:
    axes.set_axis_off()
    axes.set_title("Is it learning?", loc="left", fontsize=14, y=1.0, pad=16)
    height = 0.96
    size, width = (12, 44) if len(diagnoses) <= 2 else (9, 60)  # so that all of them fit
    for diagnosis in diagnoses:
        color = BLUE if diagnosis.name == "learning" else ORANGE
        parts = (
            (diagnosis.name, "bold", color),
            (diagnosis.reason, "normal", "black"),
            (diagnosis.advice, "normal", color),
        )
        for text, weight, shade in parts:
            lines = textwrap.wrap(text, width, break_on_hyphens=False)
            # matplotlib would read $…$ as mathematics
            escaped = "\n".join(lines).replace("$", r"\$")
            axes.text(0, height, escaped, va="top", fontsize=size, fontweight=weight, color=shade, in_layout=False)
            height -= 0.0052 * size * len(lines) + 0.025
        height -= 0.03


def _frame(axes: "Axes", title: str, left: str, below: str) -> None:
    # at a fixed height, above the power of ten that some axes have: looking for free space takes a third of the time
    axes.set_title(title, loc="left", fontsize=14, y=1.0, pad=16 if title else 0)
    axes.set_xlabel(below, fontsize=12)
    axes.set_ylabel(left, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.locator_params(nbins=4)  # a tick consists of five artists: twice as many take a quarter longer to plot
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _line(
    axes: "Axes", rows: Rows, values: Floats, color: str, label: str = "", linewidth: float = 2, marker: str = ""
) -> bool:
    """Plot the values that are numbers over their steps; whether there are any."""
    finite = np.isfinite(values)
    if finite.any():
        steps = column(rows, "step")[finite]
        if len(steps) == 1:
            marker = marker or "o"  # a line through one point is invisible
        axes.plot(steps, values[finite], color=color, label=label, linewidth=linewidth, marker=marker, markersize=5)
    return bool(finite.any())


def _level(axes: "Axes", value: float) -> None:
    """A dashed line at the value of a model that equals its reference."""
    axes.axhline(value, color="black", linestyle="--", linewidth=1)


def _change(value: float, _: float) -> str:
    hundredths = 100 * value
    if abs(hundredths) < 1e-7:
        return "0 %"
    return f"{hundredths:+,.0f} %" if abs(hundredths) >= 100 else f"{hundredths:+.3g} %"


def _percent(value: float, _: float) -> str:
    return percent(value, 0)


def _blank(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "no numbers", transform=axes.transAxes, ha="center", color=GREY, fontsize=12)
    axes.set_xticks([])
    axes.set_yticks([])
