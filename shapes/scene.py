"""What a prompt of the built-in world says, and pictures of it.

A scene is one or two shapes, each with a colour, on white. Prompts read "a red circle", "a red circle and a
blue square", "a red circle left of a blue square", "a red circle above a blue square". Pictures are 64 x 64.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageDraw

SIZE = 64
BACKGROUND = (250, 250, 250)
COLOURS: dict[str, tuple[int, int, int]] = {
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
    colour: str
    form: str

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.form}"


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for: its shapes in the order of the words, and how the first lies to the second."""

    shapes: tuple[Shape, ...]
    relation: Relation | None = None

    def __str__(self) -> str:
        return f" {self.relation} ".join(str(shape) for shape in self.shapes)


def parse(prompt: str) -> Scene:
    """The scene a prompt asks for; ValueError where the prompt is not of this world's grammar."""
    for relation in RELATIONS:
        first, found, second = prompt.strip().lower().partition(f" {relation} ")
        if found:
            return Scene((_shape(first), _shape(second)), relation)
    return Scene((_shape(prompt.strip().lower()),))


def _shape(words: str) -> Shape:
    match words.split():
        case ["a" | "an", colour, form] if colour in COLOURS and form in FORMS:
            return Shape(colour, form)
    raise ValueError(
        f"{words!r} is no shape of the built-in world; say for example 'a red circle left of a blue square'"
    )


def all_scenes() -> list[Scene]:
    """Every scene the grammar can say, singles first; two shapes always differ."""
    shapes = [Shape(colour, form) for colour in COLOURS for form in FORMS]
    pairs = [(a, b) for a in shapes for b in shapes if a != b]
    return [Scene((shape,)) for shape in shapes] + [Scene(pair, relation) for relation in RELATIONS for pair in pairs]


def wrong(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one part changed: a colour, a form, or which shape lies where."""
    if scene.relation in ("left of", "above") and rng.random() < 1 / 3:
        return replace(scene, shapes=scene.shapes[::-1])
    while True:
        at = rng.randrange(len(scene.shapes))
        shape = scene.shapes[at]
        if rng.random() < 0.5:
            shape = replace(shape, colour=rng.choice([c for c in COLOURS if c != shape.colour]))
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
    """A picture that shows the scene and nothing else; sizes and places are drawn from `rng`. 64 x 64, RGB."""
    big = Image.new("RGB", (SIZE * _OVERSAMPLING, SIZE * _OVERSAMPLING), BACKGROUND)
    draw = ImageDraw.Draw(big)
    for shape, (x, y, radius) in zip(scene.shapes, _places(scene, rng), strict=True):
        x, y, radius = x * _OVERSAMPLING, y * _OVERSAMPLING, radius * _OVERSAMPLING
        draw_shape(draw, shape.form, x, y, radius, COLOURS[shape.colour])
    return big.resize((SIZE, SIZE), Image.Resampling.BOX)


def _places(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """Centre and radius of each shape, in pixels."""
    if len(scene.shapes) == 1:
        radius = rng.uniform(11, 20)
        low, high = radius * 1.15 + 1, SIZE - radius * 1.15 - 1
        return [(rng.uniform(low, high), rng.uniform(low, high), radius)]
    relation = rng.choice(("left of", "above")) if scene.relation == "and" else scene.relation
    swapped = scene.relation == "and" and rng.random() < 0.5
    radii = [rng.uniform(9, 13) for _ in scene.shapes]
    # along: where the first comes before the second; across: nearly level
    along = [rng.uniform(14.5, 18.5), SIZE - rng.uniform(14.5, 18.5)]
    middle = rng.uniform(20, SIZE - 20)
    across = [middle + rng.uniform(-4, 4) for _ in scene.shapes]
    if swapped:
        along.reverse()
    places = list(zip(along, across, radii, strict=True))
    return places if relation == "left of" else [(y, x, r) for x, y, r in places]
