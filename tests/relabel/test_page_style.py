"""Contrast of the pages by WCAG 2.2, in light and dark, from the colors in page.css."""

import re
from itertools import product
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[2] / "relabel" / "annotate" / "static" / "page.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S))


def luminance(color: str) -> float:
    """Relative luminance of sRGB, by WCAG 2.2."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_controls_have_enough_contrast(colors: dict[str, str]):
    for ink, background in product(("ink", "dim", "main", "error"), ("page", "card")):
        assert contrast(colors[ink], colors[background]) >= 4.5, (ink, background)
    for ink, background in (("main-ink", "main"), ("ink", "soft"), ("error", "error-soft"), ("card", "good")):
        assert contrast(colors[ink], colors[background]) >= 4.5, (ink, background)
    for background in ("page", "card"):
        assert contrast(colors["edge"], colors[background]) >= 3, background
    assert LIGHT.keys() == DARK.keys()
