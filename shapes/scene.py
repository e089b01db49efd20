"""Scenes, the meaning of the built-in world's prompts, and images of them.

A scene is one or two shapes, each with a color, on white. Prompts read "a red circle", "a red circle and a
blue square", "a red circle left of a blue square", "a red circle above a blue square". Images are 64 x 64.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageDraw

SIZE = 64
BACKGROUND = (250, 250, 250)
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "green": (34, 160, 62),
    "blue": (38, 84, 220),
    "yellow": (245, 215, 40),
    "purple": (142, 48, 178),
    "orange": (246, 134, 22),
}
FORMS = ("circle", "square", "triangle", "star")
Relation = Literal["and", "left of", "above"]
RELATIONS: tuple[Relation, ...] = ("and", "left of", "above")
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Shape:
    color: str
    form: str

    def __str__(self) -> str:
        article = "an" if self.color[0] in "aeiou" else "a"
        return f"{article} {self.color} {self.form}"


@dataclass(frozen=True)
class Scene:
    """The shapes of a prompt in its order, and the position of the first relative to the second."""

    shapes: tuple[Shape, ...]
    relation: Relation | None = None

    def __str__(self) -> str:
        return f" {self.relation} ".join(str(shape) for shape in self.shapes)


def parse(prompt: str) -> Scene:
    """The scene of a prompt; ValueError if it is not in this world's grammar."""
    for relation in RELATIONS:
        first, found, second = prompt.strip().lower().partition(f" {relation} ")
        if found:
            return Scene((_shape(first), _shape(second)), relation)
    return Scene((_shape(prompt.strip().lower()),))


def _shape(words: str) -> Shape:
    match words.split():
        case ["a" | "an", color, form] if color in COLORS and form in FORMS:
            return Shape(color, form)
    raise ValueError(
        f"{words!r} is not a shape of the built-in world; write for example 'a red circle left of a blue square'"
    )


def all_scenes() -> list[Scene]:
    """Every scene in the grammar, single shapes first; two shapes always differ."""
    shapes = [Shape(color, form) for color in COLORS for form in FORMS]
    pairs = [(a, b) for a in shapes for b in shapes if a != b]
    return [Scene((shape,)) for shape in shapes] + [Scene(pair, relation) for relation in RELATIONS for pair in pairs]


def wrong(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one part changed: a color, a form, or the order of the shapes."""
    if scene.relation in ("left of", "above") and rng.random() < 1 / 3:
        return replace(scene, shapes=scene.shapes[::-1])
    while True:
        at = rng.randrange(len(scene.shapes))
        shape = scene.shapes[at]
        if rng.random() < 0.5:
            shape = replace(shape, color=rng.choice([c for c in COLORS if c != shape.color]))
        else:
            shape = replace(shape, form=rng.choice([f for f in FORMS if f != shape.form]))
        shapes = (*scene.shapes[:at], shape, *scene.shapes[at + 1 :])
        if len(set(shapes)) == len(shapes):
            return replace(scene, shapes=shapes)


def outline(form: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape that fills the square of half-width `radius` around (x, y), in pixels; not for circles."""
    if form == "square":
        r = 0.9 * radius
        return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
    if form == "triangle":
        return [(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)]
    corners = []
    for k in range(10):
        r = 1.12 * radius if k % 2 == 0 else 0.48 * radius
        angle = math.pi * (k / 5 - 0.5)
        corners.append((x + r * math.cos(angle), y + r * math.sin(angle)))
    return corners


def draw_shape(draw: ImageDraw.ImageDraw, form: str, x: float, y: float, radius: float, fill) -> None:
    if form == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        draw.polygon(outline(form, x, y, radius), fill=fill)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """An image of the scene and nothing else, with random sizes and positions. 64 x 64, RGB."""
    big = Image.new("RGB", (SIZE * _OVERSAMPLING, SIZE * _OVERSAMPLING), BACKGROUND)
    draw = ImageDraw.Draw(big)
    for shape, (x, y, radius) in zip(scene.shapes, _positions(scene, rng), strict=True):
        x, y, radius = x * _OVERSAMPLING, y * _OVERSAMPLING, radius * _OVERSAMPLING
        draw_shape(draw, shape.form, x, y, radius, COLORS[shape.color])
    return big.resize((SIZE, SIZE), Image.Resampling.BOX)


def _positions(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """Centre and radius of each shape, in pixels."""
    if len(scene.shapes) == 1:
        radius = rng.uniform(11, 20)
        low, high = radius * 1.15 + 1, SIZE - radius * 1.15 - 1
        return [(rng.uniform(low, high), rng.uniform(low, high), radius)]
    relation = rng.choice(("left of", "above")) if scene.relation == "and" else scene.relation
    swapped = scene.relation == "and" and rng.random() < 0.5
    radii = [rng.uniform(9, 13) for _ in scene.shapes]
    # along: the axis on which the first comes before the second; across: the other, nearly level
    along = [rng.uniform(14.5, 18.5), SIZE - rng.uniform(14.5, 18.5)]
    middle = rng.uniform(20, SIZE - 20)
    across = [middle + rng.uniform(-4, 4) for _ in scene.shapes]
    if swapped:
        along.reverse()
    positions = list(zip(along, across, radii, strict=True))
    return positions if relation == "left of" else [(y, x, r) for x, y, r in positions]
