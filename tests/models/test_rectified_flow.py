"""The noise of flow matching: where sigma lies, what is predicted, and how evenly a batch covers it."""

import math

import pytest
import torch
from prefloop.core.errors import UsageError
from prefloop.models.noise import RectifiedFlow
from prefloop.train.data import spread

GENERATOR = torch.Generator()


def test_noisy_latents_lie_on_the_straight_line_from_image_to_noise() -> None:
    flow = RectifiedFlow()
    latents, noise = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), -1.0)
    noisy = flow.add(latents, noise, torch.tensor([0.0, 250.0]))
    assert noisy.flatten().tolist() == [2.0, 1.25]  # 0.75 * 2 - 0.25 * 1
    assert flow.target(latents, noise, torch.tensor([0.0, 250.0])).flatten().tolist() == [-3.0, -3.0]
    # a step of sigma against the target leads back to the image
    assert (noisy - torch.tensor([0.0, 0.25])[:, None, None, None] * -3.0).flatten().tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        # the sigmoids of the normal quantiles -1.645, -0.674, 0, 0.674, 1.645
        (1.0, [0.162, 0.338, 0.5, 0.662, 0.838]),
        # 3 s / (1 + 2 s) of those: toward noise
        (3.0, [0.367, 0.605, 0.75, 0.855, 0.940]),
    ],
)
def test_logit_normal_quantiles_of_sigma(shift: float, expected: list[float]) -> None:
    flow = RectifiedFlow("logit-normal", shift)
    sigmas = [flow.sigma(quantile) for quantile in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert sigmas == pytest.approx(expected, abs=6e-4)


def test_uniform_sigma_is_its_quantile_and_no_sigma_is_infinite() -> None:
    assert [RectifiedFlow("uniform").sigma(quantile) for quantile in (0.25, 0.5)] == [0.25, 0.5]
    assert RectifiedFlow("uniform", 3.0).sigma(0.25) == 0.5  # 0.75 / 1.5
    for quantile in (0.0, 1.0):
        assert 0 < RectifiedFlow().sigma(quantile) < 1


def test_any_stretch_of_pairs_covers_every_eighth_of_the_quantiles() -> None:
    """32 positions from anywhere: random numbers would leave an eighth with none or with 9 of them one time in five."""
    for seed in range(5):
        for start in (0, 17, 1000):
            counts = [0] * 8
            for at in range(start, start + 32):
                counts[math.floor(8 * spread(seed, at))] += 1
            assert min(counts) >= 3, (seed, start, counts)
            assert max(counts) <= 5, (seed, start, counts)
    assert spread(0, 5) == spread(0, 5) != spread(1, 5)


def test_bins_are_trained_on_equally_often_and_a_timestep_stays_in_its_own() -> None:
    flow = RectifiedFlow("logit-normal", 3.0)
    bins = flow.bins(4)
    assert bins[0][0] == 0
    assert bins[-1][1] == 1000
    assert [round(end) for _, end in bins] == [604, 750, 855, 1000]
    for number, (low, high) in enumerate(bins):
        timesteps = [flow.timestep_in(number, 4, seed) for seed in range(200)]
        assert all(low < timestep < high for timestep in timesteps)
        assert flow.timestep_in(number, 4, 7) == timesteps[7]


@pytest.mark.parametrize("flow", [RectifiedFlow("logit-normal", 3.0), RectifiedFlow("uniform", 1.0)])
def test_within_a_range_the_density_is_cut_off_and_keeps_its_shape(flow: RectifiedFlow) -> None:
    cut = flow.within(400, 800)
    sigmas = [cut.sigma(k / 1000) for k in range(1001)]
    assert (sigmas[0], sigmas[-1]) == pytest.approx((0.4, 0.8))
    assert sigmas == sorted(sigmas)
    # of the whole density's quantiles between the two ends, half lie below the cut one's median
    inside = [sigma for k in range(100_001) if 0.4 <= (sigma := flow.sigma(k / 100_000)) <= 0.8]
    assert cut.sigma(0.5) == pytest.approx(inside[len(inside) // 2], abs=1e-3)
    assert [round(edge) for low, high in cut.bins(2) for edge in (low, high)][::3] == [400, 800]
    assert flow.within(0, 1000).bins(2) == flow.bins(2)


def test_min_snr_weights_are_for_diffusion() -> None:
    with pytest.raises(UsageError, match="min-snr-gamma is for diffusion models"):
        RectifiedFlow().weights(torch.tensor([500.0]), 5.0)
