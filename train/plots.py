"""A run as one picture: training.png, drawn from metrics.csv and validation.csv."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .verdicts import Floats, Rows, column, error_changes, looks, read_rows, verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people tell apart
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"


def plot_training(folder: Path) -> Path:
    """Draw `training.png` into the folder of a run; its path.

    Panels without numbers say so: a run may have no held-out pairs, and sft has no reference.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, validation = read_rows(folder / "metrics.csv"), read_rows(folder / "validation.csv")
    figure = Figure(figsize=(16, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.05)  # type: ignore[union-attr]  # it is set above
    panels = figure.subplots(2, 3)
    for axes, draw in zip(panels.flat, (_loss, _accuracy, _errors, _gradient, _bins, _verdicts), strict=True):
        draw(axes, metrics, validation)
    path = folder / "training.png"
    figure.savefig(path, dpi=100)
    return path


def _loss(axes: "Axes", metrics: Rows, validation: Rows) -> None:  # noqa: ARG001  # all panels are called alike
    _framed(axes, "Loss, mean of ten steps", "step")
    _line(axes, column(metrics, "step"), column(metrics, "loss"), BLUE)


def _accuracy(axes: "Axes", metrics: Rows, validation: Rows) -> None:
    _framed(axes, "Implicit accuracy", "step")
    rows = looks(validation)
    steps = column(rows, "step")
    _line(axes, column(metrics, "step"), column(metrics, "implicit_accuracy"), GREY, "training pairs", linewidth=1)
    if _line(axes, steps, column(rows, "implicit_accuracy"), BLUE, "held-out pairs, 95 % interval", marker="o"):
        axes.fill_between(steps, column(rows, "low"), column(rows, "high"), color=BLUE, alpha=0.15, linewidth=0)
    axes.axhline(0.5, color="black", linestyle="--", linewidth=1)
    _percent(axes)
    _legend(axes)


def _errors(axes: "Axes", metrics: Rows, validation: Rows) -> None:  # noqa: ARG001
    rows = looks(validation)
    has_reference = np.isfinite(column(rows, "ref_chosen_error")).any()
    against = "the reference's" if has_reference else "the first look's"
    _framed(axes, f"Held-out error against {against}", "step")
    for name, colour, marker in (("chosen", BLUE, "o"), ("rejected", ORANGE, "s")):
        _line(axes, column(rows, "step"), error_changes(rows, f"{name}_error"), colour, name, marker=marker)
    axes.axhline(0, color="black", linestyle="--", linewidth=1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.2%}" if abs(value) < 0.1 else f"{value:+.0%}")
    _legend(axes)


def _gradient(axes: "Axes", metrics: Rows, validation: Rows) -> None:  # noqa: ARG001
    _framed(axes, "Gradient", "step")
    steps = column(metrics, "step")
    norms = axes.twinx()
    norms.spines["top"].set_visible(False)
    if _line(norms, steps, column(metrics, "grad_norm"), ORANGE, "norm", linewidth=1):
        norms.set_yscale("log")
        norms.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        norms.set_ylabel("norm before clipping (orange)", color=ORANGE)
    axes.set_ylabel("share of its weight that is left (blue)", color=BLUE)
    if not _line(axes, steps, column(metrics, "gradient_left"), BLUE, "left"):
        axes.set_ylabel("")
    axes.axhline(0.5, color="black", linestyle="--", linewidth=1)
    axes.set_ylim(0, 1)


def _bins(axes: "Axes", metrics: Rows, validation: Rows) -> None:  # noqa: ARG001
    last = max(column(validation, "step"), default=0)
    rows = [row for row in validation if row["bin"] != "all" and float(row["step"]) == last]
    _framed(axes, f"Held-out implicit accuracy by timestep, step {last:.0f}", "timestep; the higher, the more noise")
    accuracy = column(rows, "implicit_accuracy")
    if np.isfinite(accuracy).any():
        at = np.arange(len(rows))
        reach = np.abs(np.stack([column(rows, "low"), column(rows, "high")]) - accuracy)
        axes.bar(at, accuracy, color=BLUE, alpha=0.6, width=0.7)
        axes.errorbar(at, accuracy, reach, fmt="none", ecolor="black", capsize=5)
        low, high = column(rows, "timestep_low"), column(rows, "timestep_high")
        axes.set_xticks(at, [f"{a:.0f}–{b:.0f}" for a, b in zip(low, high, strict=True)])
    else:
        _empty(axes)
    axes.axhline(0.5, color="black", linestyle="--", linewidth=1)
    axes.set_ylim(0, 1)
    _percent(axes)


def _verdicts(axes: "Axes", metrics: Rows, validation: Rows) -> None:
    axes.set_axis_off()
    axes.set_title("Is it learning?", loc="left", fontsize=14)
    height = 0.95
    for verdict in verdicts(metrics, validation):
        words = [
            (verdict.name, "bold", BLUE if verdict.name == "learning" else ORANGE),
            (verdict.reason, "normal", "black"),
            (f"→ {verdict.lever}", "normal", "black"),
        ]
        for text, weight, colour in words:
            lines = textwrap.wrap(text, 58)
            axes.text(0, height, "\n".join(lines), va="top", fontsize=12, fontweight=weight, color=colour)
            height -= 0.062 * len(lines) + 0.02
        height -= 0.03


def _framed(axes: "Axes", title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=14)
    axes.set_xlabel(below, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _line(
    axes: "Axes", steps: Floats, values: Floats, colour: str, label: str = "", linewidth: float = 2, marker: str = ""
) -> bool:
    """Draw the numbers there are; whether there are any."""
    known = np.isfinite(values)
    if known.any():
        axes.plot(
            steps[known], values[known], color=colour, label=label, linewidth=linewidth, marker=marker, markersize=5
        )
    return bool(known.any())


def _percent(axes: "Axes") -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=11)
    else:
        _empty(axes)


def _empty(axes: "Axes") -> None:
    axes.text(0.5, 0.6, "no numbers", transform=axes.transAxes, ha="center", color=GREY, fontsize=12)
