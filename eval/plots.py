"""The plots of a report: win rates with intervals, their curves over steps or rounds, and sheets of images."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

from ..store import PairStore
from ..store.query import visible

BLUE = "#1f5fa8"
# apart in lightness as well as in hue, so that they can be told apart in gray
COLORS = (BLUE, "#c8641f", "#2e8b57", "#8a3ea8", "#8c8c2a", "#555555")
MARKS = "osD^v*"


def plot_win_rates(comparisons: Sequence[Mapping[str, Any]], titles: Mapping[str, str], path: Path) -> None:
    """Win rates with their intervals; scorers whose labels trained the model are hollow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    many = len(comparisons) > 1
    rows = [
        (f"{name}{' (in-sample)' if row['in_sample'] else ''}" + (f": {titles[c['model']]}" if many else ""), row)
        for c in comparisons
        for name, row in c["scorers"].items()
    ][::-1]
    figure = Figure(figsize=(7, 1.1 + 0.45 * max(1, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = []
    for height, (_, row) in enumerate(rows):
        rate = row["win_rate"]
        interval = [rate if end is None else end for end in (row["win_rate_low"], row["win_rate_high"])]
        ends += interval
        axes.plot(interval, [height, height], color=BLUE, linewidth=2)
        fill = "white" if row["in_sample"] else BLUE
        axes.plot(rate, height, "o", markersize=8, markeredgecolor=BLUE, markerfacecolor=fill)
        label = axes.annotate(
            f"{rate:.1%}", (rate, height), (0, 8), textcoords="offset points", ha="center", fontsize=9
        )
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # over the dashed line
    axes.axvline(0.5, color="#888888", linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(rows)), [_plain_text(label) for label, _ in rows])
    axes.set_ylim(-0.6, max(1, len(rows)) - 0.3)
    axes.set_xlim(
        max(0.0, min([0.4, *(end - 0.03 for end in ends)])), min(1.0, max([0.6, *(end + 0.03 for end in ends)]))
    )
    interval = "95 % interval over" if any(row["win_rate_low"] is not None for _, row in rows) else "no interval:"
    # centered below the figure: below the axes it would be cut off beside long names
    figure.supxlabel(
        f"win rate of the tuned model, {interval} {comparisons[0]['n_prompts']} prompts; ties count ½", fontsize=10
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")  # ticks can be at 52.5 %
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]],
    path: Path,
    y_label: str,
    ticks: Mapping[int, str] | None = None,
    x_label: str = "",
) -> None:
    """Win rates of each judge at several points, from ½ at 0 on, with intervals; dashed for judges that made training labels.

    Args:
        curves: judge → places and rows, as in the results of an evaluation.
        ticks: place → its label; chosen from the places if not given.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = sorted({x for points in curves.values() for x, _ in points})
    gap = min((b - a for a, b in pairwise([0.0, *places])), default=1.0)
    for number, (name, points) in enumerate(curves.items()):
        # so that intervals do not hide one another
        shift = 0.24 * gap * (number - (len(curves) - 1) / 2) / max(1, len(curves) - 1)
        color, in_sample = COLORS[number % len(COLORS)], any(row["in_sample"] for _, row in points)
        for x, row in points:
            if row["win_rate_low"] is not None:
                ends = [row["win_rate_low"], row["win_rate_high"]]
                axes.plot([x + shift, x + shift], ends, color=color, linewidth=1.5, alpha=0.6)
        axes.plot(
            [0, *(x + shift for x, _ in points)],
            [0.5, *(row["win_rate"] for _, row in points)],
            marker=MARKS[number % len(MARKS)],
            color=color,
            linestyle="--" if in_sample else "-",
            markerfacecolor="white" if in_sample else color,
            label=f"{name} (in-sample)" if in_sample else name,
        )
    axes.axhline(0.5, color="#888888", linestyle=":", linewidth=1, zorder=0)
    if ticks is not None:
        axes.set_xticks(list(ticks), list(ticks.values()))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")  # ticks can be at 52.5 %
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_samples(
    titles: Sequence[str], items: Sequence[tuple[str, Sequence[UUID]]], store: PairStore, path: Path
) -> None:
    """A sheet of images: of each prompt the last model's on the left, then the others; the prompt below.

    Args:
        items: prompts with the image of each model.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..store import load_image

    n_models = len(titles)
    columns = min(max(1, 8 // n_models), len(items))
    n_rows = -(-len(items) // columns)
    width, height = 1.5 * n_models * columns, 1.95 * n_rows + 0.4  # inches
    figure = Figure(figsize=(width, height), dpi=150)
    canvas = FigureCanvasAgg(figure)
    plain = [_plain_text(title) for title in reversed(titles)]
    names = f"left: {plain[0]}   right: {plain[1]}" if n_models == 2 else f"left to right: {', '.join(plain)}"
    figure.suptitle(names, fontsize=10, y=1 - 0.05 / height)
    # every cell has the same size, so that nothing needs to be measured
    edges = {"left": 0.06 / width, "right": 1 - 0.06 / width, "bottom": 0.27 / height, "top": 1 - 0.33 / height}
    grid = figure.add_gridspec(n_rows, columns, **edges, wspace=0.04, hspace=0.24)
    for number, (text, images) in enumerate(items):
        cell = grid[number // columns, number % columns].subgridspec(1, n_models, wspace=0.02)
        for place, image in enumerate(reversed(images)):
            axes = figure.add_subplot(cell[0, place])
            axes.imshow(load_image(store.image_path(image)))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("#cccccc")
            if place == 0:
                prompt = visible(text)
                short = prompt if len(prompt) <= 44 else prompt[:43] + "…"
                axes.set_xlabel(_plain_text(short), fontsize=7, loc="left")
    canvas.print_png(path)


def _plain_text(text: str) -> str:
    """The text without mathematics, as which matplotlib would read $…$."""
    return text.replace("$", r"\$")
