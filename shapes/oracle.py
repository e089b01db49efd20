"""The oracle: reads colors, forms and positions from the pixels of an image, without learning anything.

It says which parts of a prompt an image satisfies. `eval` may use it; `relabel` refuses it, so that one scorer always stays
independent of the training labels.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .scene import BACKGROUND, COLORS, FORMS, Scene, Shape, draw_shape, parse

_SMALLEST = 40  # pixels; a smaller blob is not a shape
_GRID = 24  # side of the square on which outlines are compared
_MIN_OVERLAP = 0.62  # with the closest outline; below it a blob is not a known form
_PALETTE = np.array([BACKGROUND, *COLORS.values()], dtype=np.float32)  # (7, 3)


@dataclass(frozen=True)
class FoundShape:
    """A shape found in an image; x and y are its center in pixels, overlap that with the outline of its form, 0..1."""

    shape: Shape
    x: float
    y: float
    overlap: float


@cache
def _outlines() -> dict[str, np.ndarray]:
    """Each form cropped to its bounding box, (_GRID, _GRID) in 0..1."""
    outlines = {}
    for form in FORMS:
        canvas = Image.new("L", (200, 200))
        draw_shape(ImageDraw.Draw(canvas), form, 100, 100, 80, 255)
        outlines[form] = _cropped(np.asarray(canvas) > 127)
    return outlines


def _cropped(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(crop.astype(np.float32))
    return np.asarray(image.resize((_GRID, _GRID), Image.Resampling.BILINEAR))


def find_shapes(image: Image.Image) -> list[FoundShape]:
    """The shapes in an image, from left to right, without blobs of an unknown form."""
    pixels = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), dtype=np.float32)
    nearest = ((pixels[:, :, None, :] - _PALETTE) ** 2).sum(-1).argmin(-1)  # (64, 64), 0 is background
    shapes = []
    # a shape is a blob of non-background; its color is the nearest color of most of its inside, since an edge
    # pixel is mixed with white and may be nearest to a third color
    labelled: Any = ndimage.label(nearest > 0)
    blobs, count = labelled
    for blob in range(1, count + 1):
        mask = blobs == blob
        if mask.sum() < _SMALLEST:
            continue
        inside = ndimage.binary_erosion(mask, iterations=2)
        votes = np.bincount(nearest[inside if inside.any() else mask], minlength=7)
        shares = votes / votes.sum()
        color = list(COLORS)[int(votes[1:].argmax())]
        if shares[1:].max() < 0.7:
            continue  # two colors in one blob: not a shape that a prompt can name
        overlaps = {form: _overlap(_cropped(mask), outline) for form, outline in _outlines().items()}
        form, overlap = max(overlaps.items(), key=lambda item: item[1])
        if overlap < _MIN_OVERLAP:
            continue
        center: Any = ndimage.center_of_mass(mask)
        y, x = center
        shapes.append(FoundShape(Shape(color, form), float(x), float(y), overlap))
    return sorted(shapes, key=lambda shape: shape.x)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def check(prompt: str | Scene, image: Image.Image) -> dict[str, bool]:
    """Each part of the prompt, and whether the image satisfies it.

    The parts are every named shape (color and form together), the relation if there is one, and "nothing else".
    """
    scene = prompt if isinstance(prompt, Scene) else parse(prompt)
    found = find_shapes(image)
    parts = {str(shape): any(item.shape == shape for item in found) for shape in scene.shapes}
    if scene.relation in ("left of", "above"):
        parts[scene.relation] = any(
            _holds(first, scene.relation, second)
            for first in found
            for second in found
            if (first.shape, second.shape) == scene.shapes
        )
    parts["nothing else"] = len(found) <= len(scene.shapes)
    return parts


def _holds(first: FoundShape, relation: str, second: FoundShape) -> bool:
    right, down = second.x - first.x, second.y - first.y
    return right > abs(down) if relation == "left of" else down > abs(right)
