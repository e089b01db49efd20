"""Sheets of images: what models generated for the same prompts, close together in one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..core.text import visible
from ..store import PairStore
from .plots import plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image


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
    axes.text(between / 2, height - 0.2, plain_text(heading), fontsize=9, va="center")
    for number, (text, images, marks) in enumerate(items):
        row, column = divmod(number, columns)
        x = between / 2 + column * (item_width + between)
        y = height - top - row * row_height - line - side
        prompt = visible(text)
        longest = int(item_width * 17)  # characters that fit at this size
        short = prompt if len(prompt) <= longest else prompt[: longest - 1] + "…"
        axes.text(x, y + side + 0.06, plain_text(short), fontsize=8, va="bottom")
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
                title = plain_text(titles[place])
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
