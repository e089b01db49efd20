"""Measurements that show whether the images of a tuned model have moved."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from prefloop.loop.guards import GUARDS, diversity, measure, measure_prompts, out_of_bounds


def uniform(*rgb: int) -> Image.Image:
    return Image.new("RGB", (32, 32), rgb)


def checkerboard(period: int, contrast: int = 255) -> Image.Image:
    rows, columns = np.indices((32, 32)) // period
    return Image.fromarray((contrast * ((rows + columns) % 2)).astype(np.uint8)).convert("RGB")


def test_saturation_is_the_largest_minus_the_smallest_channel():
    assert measure(uniform(255, 255, 255))["saturation"] == 0
    assert measure(uniform(255, 0, 0))["saturation"] == 1
    assert measure(uniform(204, 51, 102))["saturation"] == pytest.approx((204 - 51) / 255)


def test_sharpness_of_a_checkerboard_of_single_pixels_is_16():
    # each pixel differs by 1 from its four neighbours: a Laplacian of 4 in size
    assert measure(checkerboard(1))["sharpness"] == pytest.approx(16)
    assert measure(uniform(9, 9, 9))["sharpness"] == pytest.approx(0, abs=1e-12)


def test_high_frequency_energy_is_all_of_a_fine_pattern_and_little_of_a_coarse_one():
    assert measure(checkerboard(1))["high_frequency"] == pytest.approx(1)  # at (1/2, 1/2) cycles per pixel
    assert measure(checkerboard(8))["high_frequency"] < 0.2
    assert measure(uniform(1, 2, 3))["high_frequency"] == 0


def test_a_blur_lowers_sharpness_and_high_frequencies_and_less_contrast_only_sharpness():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).convert("RGB")
    before, blurred = measure(image), measure(image.filter(ImageFilter.GaussianBlur(2)))
    assert blurred["sharpness"] < 0.1 * before["sharpness"]
    assert blurred["high_frequency"] < 0.5 * before["high_frequency"]
    full, half = measure(checkerboard(2)), measure(checkerboard(2, contrast=127))
    assert half["sharpness"] == pytest.approx(full["sharpness"] * (127 / 255) ** 2)
    assert half["high_frequency"] == pytest.approx(full["high_frequency"])


def test_diversity_is_the_mean_rms_difference_over_all_pairs_of_a_prompts_images():
    black, white, gray = uniform(0, 0, 0), uniform(255, 255, 255), uniform(51, 51, 51)
    assert diversity([black, white]) == pytest.approx(1)
    assert diversity([black, black]) == 0
    assert diversity([black, white, gray]) == pytest.approx((1 + 0.2 + 0.8) / 3)
    assert diversity([black]) is None


def test_prompts_weigh_the_same_and_one_image_per_prompt_has_no_diversity():
    red, white = uniform(255, 0, 0), uniform(255, 255, 255)
    measured = measure_prompts([[red, red, white], [white]])
    assert measured["saturation"] == pytest.approx((2 / 3 + 0) / 2)
    assert "diversity" not in measure_prompts([[red], [white]])
    assert measured["diversity"] == pytest.approx(diversity([red, red, white]))


def test_bounds_are_ratios_to_the_base_and_a_base_of_zero_has_none():
    low, high = GUARDS["sharpness"].bounds
    assert out_of_bounds({"sharpness": 2 * high * 0.999}, {"sharpness": 2.0}) == {}
    assert out_of_bounds({"sharpness": 2 * high * 1.001}, {"sharpness": 2.0}) == {
        "sharpness": pytest.approx(high * 1.001)
    }
    assert out_of_bounds({"sharpness": 2 * low * 0.999}, {"sharpness": 2.0}) == {
        "sharpness": pytest.approx(low * 0.999)
    }
    assert out_of_bounds({"sharpness": 1.0, "diversity": 1.0}, {"sharpness": 0.0}) == {}
