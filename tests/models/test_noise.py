"""Noise is added as DDPM does, and targets and weights belong to what the model predicts."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from prefloop.core.errors import UsageError
from prefloop.models.noise import Diffusion

TIMESTEPS = torch.tensor([10, 500, 990])


def diffusion(prediction: Any = "epsilon", timesteps: tuple[int, ...] = tuple(range(1000))) -> Diffusion:
    return Diffusion(DDPMScheduler(prediction_type=prediction, beta_schedule="scaled_linear"), timesteps)


def sampled() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(2))
    return latents, noise


def test_noisy_latents_are_the_weighted_sum_of_latents_and_noise():
    latents, noise = sampled()
    # scaled_linear: square roots of the betas grow evenly from 0.0001 to 0.02
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64).square()
    kept = (1 - betas).cumprod(0)[TIMESTEPS].float()[:, None, None, None]
    noisy = diffusion().add(latents, noise, TIMESTEPS)
    assert torch.allclose(noisy, kept.sqrt() * latents + (1 - kept).sqrt() * noise, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_model_predicts(prediction: str):
    latents, noise = sampled()
    made = diffusion(prediction)
    kept = made.scheduler.alphas_cumprod[TIMESTEPS][:, None, None, None]
    # v = sqrt(alpha) * noise - sqrt(1 - alpha) * image
    expected = {"epsilon": noise, "sample": latents, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * latents}
    target = made.target(latents, noise, TIMESTEPS)
    assert torch.allclose(target, expected[prediction], atol=1e-6)
    assert made.target(latents.half(), noise.half(), TIMESTEPS).dtype == torch.float32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_make_the_same_loss_of_the_image_whatever_is_predicted(prediction: str):
    # an error of the noise is one of the image times sqrt(snr); of the velocity times sqrt(snr + 1): weights undo that
    timesteps = torch.tensor([1, 200, 500, 999])
    made = diffusion(prediction)
    weights = made.weights(timesteps, gamma=5.0)
    kept = made.scheduler.alphas_cumprod[timesteps]
    snr = kept / (1 - kept)
    of_image = {"epsilon": weights * snr, "v_prediction": weights * (snr + 1), "sample": weights}[prediction]
    assert torch.allclose(of_image, snr.clamp(max=5.0), rtol=1e-4)


def test_an_unknown_prediction_type_is_refused():
    made = diffusion()
    made.scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="flow"):
        made.target(*sampled(), TIMESTEPS)


def test_timesteps_follow_from_the_generator_and_are_as_likely_as_one_another():
    made = diffusion(timesteps=(249, 499, 749, 999))
    generator = torch.Generator().manual_seed(0)
    timesteps = [made.timestep(generator, 0.5) for _ in range(4000)]
    generator = torch.Generator().manual_seed(0)
    assert timesteps[:10] == [made.timestep(generator, 0.5) for _ in range(10)]
    for timestep in made.timesteps:
        assert timesteps.count(timestep) == pytest.approx(
            1000, abs=4 * 27.4
        )  # 4 standard deviations, sqrt(4000 * 3 / 16)


def test_within_a_range_only_its_timesteps_are_trained_on_and_validated():
    noise = diffusion(timesteps=tuple(range(1000))).within(400, 600)
    assert (noise.timesteps[0], noise.timesteps[-1], len(noise.timesteps)) == (400, 600, 201)
    generator = torch.Generator().manual_seed(0)
    assert {400 <= noise.timestep(generator, 0.5) <= 600 for _ in range(200)} == {True}
    assert noise.bins(2) == [(400, 499), (500, 600)]


def test_a_range_without_a_timestep_of_the_model_is_refused():
    turbo = diffusion(timesteps=(249, 499, 749, 999))
    assert turbo.within(500, 1000).timesteps == (749, 999)
    with pytest.raises(UsageError, match="none of the model's timesteps, 249 to 999, is from 0 to 200"):
        turbo.within(0, 200)
