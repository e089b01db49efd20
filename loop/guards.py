"""Cheap measurements of images that reward hacking moves: they are compared with those of the base model's images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
_THUMBNAIL = 16  # pixels


@dataclass(frozen=True, kw_only=True)
class Guard:
    meaning: str
    bounds: tuple[float, float]
    """Smallest and largest ratio to the base model's images that passes."""


# a scorer that is hacked moves these by factors, honest training by a fifth or so; see docs/rounds.md
GUARDS = {
    "saturation": Guard(meaning="largest minus smallest color channel, mean over pixels", bounds=(0.5, 1.6)),
    "sharpness": Guard(meaning="mean square of the Laplacian of the luminance", bounds=(0.4, 2.5)),
    "high_frequency": Guard(meaning="fraction of the spectrum's energy above half of its radius", bounds=(0.4, 2.5)),
    "diversity": Guard(meaning="RMS difference between two images of one prompt, at 16 x 16 pixels", bounds=(0.6, 1.8)),
}


def measure(image: Image.Image) -> dict[str, float]:
    """Saturation, sharpness and high-frequency energy of an image, each 0 or more."""
    pixels = _pixels(image)
    luminance = pixels @ np.array([0.299, 0.587, 0.114])
    return {
        "saturation": float((pixels.max(2) - pixels.min(2)).mean()),
        "sharpness": float(np.square(_laplacian(luminance)).mean()),
        "high_frequency": _high_frequency(luminance),
    }


def diversity(images: Sequence[Image.Image]) -> float | None:
    """Mean RMS difference between every two images of a prompt, 0..1, on thumbnails; None for fewer than two."""
    small = [_pixels(image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)) for image in images]
    distances = [float(np.sqrt(np.square(a - b).mean())) for a, b in combinations(small, 2)]
    return float(np.mean(distances)) if distances else None


def measure_prompts(images_of_prompts: Iterable[Sequence[Image.Image]]) -> dict[str, float]:
    """The mean of each measurement over prompts, which weigh the same; without diversity if no prompt has two images."""
    of_prompts: dict[str, list[float]] = {name: [] for name in GUARDS}
    for images in images_of_prompts:
        rows = [measure(image) for image in images]
        for name in rows[0]:
            of_prompts[name].append(float(np.mean([row[name] for row in rows])))
        if (distance := diversity(images)) is not None:
            of_prompts["diversity"].append(distance)
    return {name: float(np.mean(values)) for name, values in of_prompts.items() if values}


def out_of_bounds(measured: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """Ratio to the base's images of each measurement that leaves its bounds; one whose base is 0 is left out."""
    ratios = {name: measured[name] / base[name] for name in measured if base.get(name)}
    return {name: ratio for name, ratio in ratios.items() if not _within(ratio, GUARDS[name].bounds)}


def _within(ratio: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= ratio <= bounds[1]


def _pixels(image: Image.Image) -> Floats:
    return np.asarray(image.convert("RGB"), np.float64) / 255  # (H, W, 3)


def _laplacian(luminance: Floats) -> Floats:
    """Sum of the four neighbours minus four times the pixel, without the border; (H, W) to (H - 2, W - 2)."""
    return (
        luminance[:-2, 1:-1]
        + luminance[2:, 1:-1]
        + luminance[1:-1, :-2]
        + luminance[1:-1, 2:]
        - 4 * luminance[1:-1, 1:-1]
    )


def _high_frequency(luminance: Floats) -> float:
    """Fraction of the energy, without the mean, at more than a quarter of a cycle per pixel, 0..1; 0 for a uniform image."""
    energy = np.abs(np.fft.fft2(luminance - luminance.mean())) ** 2
    rows, columns = (np.fft.fftfreq(size) for size in luminance.shape)
    high = np.hypot(rows[:, None], columns[None, :]) > 0.25
    total = energy.sum()
    return float(energy[high].sum() / total) if total > 1e-12 else 0.0
