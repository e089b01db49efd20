"""The oracle: reads colours, forms and positions from the pixels of a picture, without learning anything.

It says which parts of a prompt a picture satisfies. It may judge in `eval`; `relabel` refuses it, so that there is
always a judge that made no training label.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .scene import BACKGROUND, COLOURS, FORMS, Scene, Shape, draw_shape, parse

_SMALLEST = 40  # pixels; a smaller blot is no shape
_GRID = 24  # side of the square on which outlines are compared
_LIKENESS = 0.62  # overlap with the closest outline below which a blot is no known form
_PALETTE = np.array([BACKGROUND, *COLOURS.values()], dtype=np.float32)  # (7, 3)


@dataclass(frozen=True)
class Seen:
    """One shape found in a picture; x and y are its centre in pixels, likeness its overlap with the form, 0..1."""

    shape: Shape
    x: float
    y: float
    likeness: float


@cache
def _outlines() -> dict[str, np.ndarray]:
    """Each form cut to its own bounding box, (_GRID, _GRID) in 0..1."""
    outlines = {}
    for form in FORMS:
        canvas = Image.new("L", (200, 200))
        draw_shape(ImageDraw.Draw(canvas), form, 100, 100, 80, 255)
        outlines[form] = _squared(np.asarray(canvas) > 127)
    return outlines


def _squared(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = Image.fromarray(cut.astype(np.float32))
    return np.asarray(picture.resize((_GRID, _GRID), Image.Resampling.BILINEAR))


def look(image: Image.Image) -> list[Seen]:
    """The shapes in a picture, from left to right. Blots of no known form are left out."""
    pixels = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), dtype=np.float32)
    nearest = ((pixels[:, :, None, :] - _PALETTE) ** 2).sum(-1).argmin(-1)  # (64, 64), 0 is background
    seen = []
    # a shape is a blot of non-background; its colour is what most of its inside is nearest to, since an edge
    # pixel is a mixture with white and may be nearest to a third colour
    labelled: Any = ndimage.label(nearest > 0)
    blots, count = labelled
    for blot in range(1, count + 1):
        mask = blots == blot
        if mask.sum() < _SMALLEST:
            continue
        inside = ndimage.binary_erosion(mask, iterations=2)
        votes = np.bincount(nearest[inside if inside.any() else mask], minlength=7)
        shares = votes / votes.sum()
        colour = list(COLOURS)[int(votes[1:].argmax())]
        if shares[1:].max() < 0.7:
            continue  # two colours in one blot: no shape that a prompt can name
        likenesses = {form: _overlap(_squared(mask), outline) for form, outline in _outlines().items()}
        form, likeness = max(likenesses.items(), key=lambda item: item[1])
        if likeness < _LIKENESS:
            continue
        centre: Any = ndimage.center_of_mass(mask)
        y, x = centre
        seen.append(Seen(Shape(colour, form), float(x), float(y), likeness))
    return sorted(seen, key=lambda found: found.x)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def judge(prompt: str | Scene, image: Image.Image) -> dict[str, bool]:
    """Each part of the prompt, and whether the picture satisfies it.

    The parts are every named shape (colour and form together), the relation where there is one, and "nothing else".
    """
    scene = prompt if isinstance(prompt, Scene) else parse(prompt)
    seen = look(image)
    parts = {str(shape): any(found.shape == shape for found in seen) for shape in scene.shapes}
    if scene.relation in ("left of", "above"):
        parts[scene.relation] = any(
            _lies(first, scene.relation, second)
            for first in seen
            for second in seen
            if (first.shape, second.shape) == scene.shapes
        )
    parts["nothing else"] = len(seen) <= len(scene.shapes)
    return parts


def _lies(first: Seen, relation: str, second: Seen) -> bool:
    right, down = second.x - first.x, second.y - first.y
    return right > abs(down) if relation == "left of" else down > abs(right)
