"""Both images of a pair are asked the same question."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from prefloop.train.denoise import min_snr_weights, noisy_pair, pair_errors, residuals


def schedule(kind: Any) -> DDPMScheduler:
    return DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear")


def drawn(b: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    chosen, rejected, noise = (torch.randn(b, 4, 2, 2, generator=generator) for _ in range(3))
    return chosen, rejected, torch.randn(b, 5, 8, generator=generator), noise, torch.tensor([10, 500, 990])


def test_both_images_get_one_noise_and_one_timestep():
    chosen, rejected, hidden, noise, timesteps = drawn()
    pair = noisy_pair(schedule("epsilon"), chosen, rejected, hidden, noise, timesteps)
    assert torch.equal(pair.timesteps[:3], pair.timesteps[3:])
    assert torch.equal(pair.target[:3], pair.target[3:])
    assert torch.equal(pair.target[:3], noise)
    assert torch.equal(pair.hidden[:3], pair.hidden[3:])
    # what is left when the images' own shares are taken away is the same noise
    alpha = schedule("epsilon").alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    assert torch.allclose(pair.latents[:3] - alpha * chosen, pair.latents[3:] - alpha * rejected, atol=1e-5)


def test_perturbing_the_input_keeps_the_noise_of_a_pair_tied():
    chosen, rejected, hidden, noise, timesteps = drawn()
    perturbed = noise + 0.1
    pair = noisy_pair(schedule("epsilon"), chosen, rejected, hidden, noise, timesteps, perturbed)
    alpha = schedule("epsilon").alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    assert torch.allclose(pair.latents[:3] - alpha * chosen, pair.latents[3:] - alpha * rejected, atol=1e-5)
    assert torch.equal(pair.target, noise.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_model_predicts(kind: str):
    chosen, rejected, hidden, noise, timesteps = drawn()
    pair = noisy_pair(schedule(kind), chosen, rejected, hidden, noise, timesteps)
    both, twice = torch.cat([chosen, rejected]), noise.repeat(2, 1, 1, 1)
    kept = schedule(kind).alphas_cumprod[timesteps].repeat(2)[:, None, None, None]
    # v = sqrt(alpha) * noise - sqrt(1 - alpha) * image
    expected = {"epsilon": twice, "sample": both, "v_prediction": kept.sqrt() * twice - (1 - kept).sqrt() * both}
    assert torch.allclose(pair.target, expected[kind], atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_make_the_same_loss_of_the_image_whatever_is_predicted(kind: str):
    # an error of the noise is one of the image times sqrt(snr); of the velocity times sqrt(snr + 1): weights undo that
    timesteps = torch.tensor([1, 200, 500, 999])
    weights = min_snr_weights(schedule(kind), timesteps, gamma=5.0)
    kept = schedule(kind).alphas_cumprod[timesteps]
    snr = kept / (1 - kept)
    of_image = {"epsilon": weights * snr, "v_prediction": weights * (snr + 1), "sample": weights}[kind]
    assert torch.allclose(of_image, snr.clamp(max=5.0), rtol=1e-4)


def test_an_unknown_prediction_type_is_refused():
    scheduler = schedule("epsilon")
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="flow"):
        noisy_pair(scheduler, *drawn())


def test_errors_are_float32_means_per_image_whatever_the_model_runs_in():
    pair = noisy_pair(schedule("epsilon"), *drawn())

    def unet(latents, _timesteps, _hidden):
        shift = torch.arange(1, len(latents) + 1)[:, None, None, None]
        return SimpleNamespace(sample=(pair.target + shift).to(torch.bfloat16))

    chosen, rejected = pair_errors(residuals(unet, pair))
    assert chosen.dtype == rejected.dtype == torch.float32
    # predictions off by 1 to 6: squares 1, 4, 9 and 16, 25, 36, up to the rounding of bfloat16
    assert torch.allclose(chosen, torch.tensor([1.0, 4.0, 9.0]), rtol=0.05)
    assert torch.allclose(rejected, torch.tensor([16.0, 25.0, 36.0]), rtol=0.05)
