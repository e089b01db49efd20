"""The plots of a report: win rates with intervals, and their curves over steps or rounds, each for light and for dark pages."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.text import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4.8
"""Inches. On a phone of 400 pixels a point of type is then about a pixel high."""
TEXT = 11
"""Size of type in points."""
MARKS = "osD^v*"


@dataclass(frozen=True)
class _Theme:
    ink: str
    page: str
    faint: str
    """Of lines that are not data."""
    colors: tuple[str, ...]
    """Apart in lightness as well as in hue, so that they can be told apart in gray."""


_LIGHT = _Theme("#1b1b1b", "#ffffff", "#8a8a8a", ("#1f5fa8", "#c8641f", "#2e8b57", "#8a3ea8", "#8c8c2a", "#555555"))
_DARK = _Theme("#ececec", "#16181c", "#8a8a8a", ("#7fb0ec", "#f0a060", "#7fd6a4", "#d9a1ef", "#d6d67a", "#b5b5b5"))


def dark(path: Path) -> Path:
    """The file that a page shows in place of the plot where the system is set to dark."""
    return path.with_stem(f"{path.stem}-dark")


def plot_win_rates(comparisons: Sequence[Mapping[str, Any]], titles: Mapping[str, str], path: Path) -> None:
    """Win rates with their intervals; scorers whose labels trained the model are hollow. Writes `path` and its dark twin."""
    many = len(comparisons) > 1
    rows = [
        (f"{name}{': ' + titles[c['model']] if many else ''}{' (in-sample)' if row['in_sample'] else ''}", row)
        for c in comparisons
        for name, row in c["scorers"].items()
    ][::-1]
    height = 1.5 + 0.52 * max(1, len(rows))
    for theme, figure in _renderings(path, height, _title(comparisons, titles)):
        axes = figure.add_subplot()
        ends = []
        for place, (label, row) in enumerate(rows):
            rate, color = row["win_rate"], theme.colors[0]
            interval = [rate if end is None else end for end in (row["win_rate_low"], row["win_rate_high"])]
            ends += interval
            axes.plot(interval, [place, place], color=color, linewidth=2.5)
            fill = theme.page if row["in_sample"] else color
            axes.plot(rate, place, "o", markersize=8, markeredgecolor=color, markerfacecolor=fill, clip_on=False)
            number = percent(rate)
            if row["win_rate_low"] is not None:
                number += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
            # beside the axis a long name would take half of the width
            at = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "fontsize": TEXT}
            axes.annotate(plain_text(textwrap.shorten(label, 34, placeholder="…")), (0, place), (4, 9), **at)
            axes.annotate(number, (1, place), (0, 9), ha="right", **at)
        axes.axvline(0.5, color=theme.faint, linestyle="--", linewidth=1, zorder=0)
        axes.set_yticks([])
        axes.set_ylim(-0.4, max(1, len(rows)) - 0.2)
        low, high = min([0.4, *(end - 0.03 for end in ends)]), max([0.6, *(end + 0.03 for end in ends)])
        axes.set_xlim(max(0.0, low), min(1.0, high))
        has_interval = any(row["win_rate_low"] is not None for _, row in rows)
        kind, n = "95 % interval over" if has_interval else "no interval:", comparisons[0]["n_prompts"]
        axes.set_xlabel(f"win rate, {kind} {n} prompts; ties count ½", fontsize=TEXT - 1)
        axes.xaxis.set_major_locator(_ticks())
        axes.xaxis.set_major_formatter(_percent)


def _title(comparisons: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    baselines = {titles[c["baseline"]] for c in comparisons}
    if len(comparisons) == 1:
        return f"Win rate of {titles[comparisons[0]['model']]} against {baselines.pop()}"
    return f"Win rates against {baselines.pop() if len(baselines) == 1 else 'their baselines'}"


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]],
    path: Path,
    title: str,
    ticks: Mapping[int, str] | None = None,
    x_label: str = "",
) -> None:
    """Win rates of each judge at several points, from ½ at 0 on, with intervals; dashed for judges that made training labels.
    Writes `path` and its dark twin.

    Args:
        curves: judge → places and rows, as in the results of an evaluation.
        ticks: place → its label; chosen from the places if not given.
    """
    places = sorted({x for points in curves.values() for x, _ in points})
    gap = min((b - a for a, b in pairwise([0.0, *places])), default=1.0)
    for theme, figure in _renderings(path, 3.6 + 0.24 * -(-len(curves) // 2), title):
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(curves.items()):
            # so that intervals do not hide one another
            shift = 0.24 * gap * (number - (len(curves) - 1) / 2) / max(1, len(curves) - 1)
            color, in_sample = theme.colors[number % len(theme.colors)], any(row["in_sample"] for _, row in points)
            for x, row in points:
                if row["win_rate_low"] is not None:
                    ends = [row["win_rate_low"], row["win_rate_high"]]
                    axes.plot([x + shift, x + shift], ends, color=color, linewidth=1.5, alpha=0.6)
            label = textwrap.shorten(name, 22, placeholder="…") + (" (in-sample)" if in_sample else "")
            axes.plot(
                [0, *(x + shift for x, _ in points)],
                [0.5, *(row["win_rate"] for _, row in points)],
                marker=MARKS[number % len(MARKS)],
                color=color,
                linestyle="--" if in_sample else "-",
                markerfacecolor=theme.page if in_sample else color,
                label=plain_text(label),
            )
        axes.axhline(0.5, color=theme.faint, linestyle=":", linewidth=1, zorder=0)
        if ticks is not None:
            shown = list(ticks)[:: -(-len(ticks) // 10)]
            axes.set_xticks(shown, [ticks[place] for place in shown])
        axes.yaxis.set_major_formatter(_percent)
        axes.set_xlabel(x_label, fontsize=TEXT)
        axes.set_ylabel("win rate; ties count ½", fontsize=TEXT - 1)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=TEXT - 2, labelcolor=theme.ink)


def _renderings(path: Path, height: float, title: str) -> "Iterator[tuple[_Theme, Figure]]":
    """An empty figure for each of light and dark, which is written when the next one is asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for theme, target in ((_LIGHT, path), (_DARK, dark(path))):
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=theme.page)
        FigureCanvasAgg(figure)
        lines = plain_text("\n".join(textwrap.wrap(title, 48)[:3]))
        figure.suptitle(lines, x=0.02, ha="left", fontsize=TEXT + 1, fontweight="bold", color=theme.ink)
        yield theme, figure
        for axes in figure.axes:
            axes.set_facecolor(theme.page)
            axes.tick_params(colors=theme.ink, labelsize=TEXT - 1)
            for label in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
                label.set_color(theme.ink)
            for side, spine in axes.spines.items():
                spine.set_color(theme.faint)
                spine.set_visible(side == "bottom" or (side == "left" and len(axes.get_yticks()) > 0))
        figure.savefig(target, dpi=200, facecolor=theme.page)


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, steps=[1, 2.5, 5, 10])  # all divide one half, so that it has a tick


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:g} %"  # ticks can be at 52.5 %


def plain_text(text: str) -> str:
    """The text without mathematics, as which matplotlib would read $…$."""
    return text.replace("$", r"\$")
