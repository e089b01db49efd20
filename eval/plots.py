"""The plots of a report: win rates with intervals, their curves over steps or rounds, and sheets of images."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..store import PairStore
from ..store.query import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

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


def draw_sheet(
    titles: Sequence[str],
    items: Sequence[tuple[str, Sequence[UUID], Sequence[bool | None]]],
    heading: str,
    store: PairStore,
    path: Path,
    columns: int,
) -> None:
    """A sheet of images: below each prompt those of all models from left to right, close together, with marks.

    Args:
        titles: of the models, from left to right.
        items: prompts, the image of each model, and its mark: True a check, False a cross, None nothing.
        columns: prompts beside one another.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..store import load_image

    columns = max(1, min(columns, len(items)))
    n_rows = -(-len(items) // columns)
    side, gap, between, line, top = 1.25, 0.03, 0.3, 0.22, 0.62  # inches
    item_width, row_height = len(titles) * (side + gap) - gap, side + line + 0.12
    width, height = columns * (item_width + between), n_rows * row_height + top
    figure = Figure(figsize=(width, height), dpi=150)
    canvas = FigureCanvasAgg(figure)
    # one pair of axes in inches for everything: one for each image takes three times as long
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    axes.text(between / 2, height - 0.2, _plain_text(heading), fontsize=9, va="center")
    for number, (text, images, marks) in enumerate(items):
        row, column = divmod(number, columns)
        x = between / 2 + column * (item_width + between)
        y = height - top - row * row_height - line - side
        prompt = visible(text)
        longest = int(item_width * 17)  # characters that fit at this size
        short = prompt if len(prompt) <= longest else prompt[: longest - 1] + "…"
        axes.text(x, y + side + 0.06, _plain_text(short), fontsize=8, va="bottom")
        for place, (image, mark) in enumerate(zip(images, marks, strict=True)):
            left = x + place * (side + gap)
            right, upper = _draw_image(axes, load_image(store.image_path(image)), (left, y), side)
            if mark is not None:
                sign, color = ("✓", "#1a7f37") if mark else ("✗", "#b3261e")
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                at: dict[str, Any] = {"ha": "right", "va": "top", "fontweight": "bold"}
                inset = 0.03 * side
                axes.text(right - inset, upper - inset, sign, color=color, fontsize=10, bbox=box, **at)
            if row == 0:
                title = _plain_text(titles[place])
                axes.text(left + side / 2, height - 0.5, title, fontsize=8, ha="center", color="#666666")
    canvas.print_png(path)


def _draw_image(axes: "Axes", image: "Image", corner: tuple[float, float], side: float) -> tuple[float, float]:
    """Draw an image, framed, in the middle of a square; its upper right corner."""
    from matplotlib.patches import Rectangle

    scale = side / max(image.size)
    width, height = image.width * scale, image.height * scale
    left, bottom = corner[0] + (side - width) / 2, corner[1] + (side - height) / 2
    extent = (left, left + width, bottom, bottom + height)
    axes.imshow(image, extent=extent, aspect="auto")
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor="#cccccc", linewidth=0.8))
    return left + width, bottom + height


def _plain_text(text: str) -> str:
    """The text without mathematics, as which matplotlib would read $…$."""
    return text.replace("$", r"\$")
