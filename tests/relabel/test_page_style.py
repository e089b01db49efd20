"""The pages can be read: contrast by WCAG 2.2, in light and dark, from the colours that page.css names."""

import re
from itertools import product
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[2] / "relabel" / "annotate" / "static" / "page.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, by WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_can_be_read_and_every_control_be_seen(colours: dict[str, str]):
    for ink, ground in product(("ink", "dim", "main", "wrong"), ("page", "card")):
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ink, ground in (("main-ink", "main"), ("ink", "soft"), ("wrong", "wrong-soft"), ("card", "good")):
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ground in ("page", "card"):
        assert contrast(colours["edge"], colours[ground]) >= 3, ground
    assert LIGHT.keys() == DARK.keys()


def test_nothing_moves_unless_the_reader_lets_it():
    moving = [match.start() for match in re.finditer(r"\b(transition|animation)\b", CSS)]
    allowed = CSS.index("@media (prefers-reduced-motion: no-preference)")
    assert moving
    assert all(at > allowed for at in moving)
