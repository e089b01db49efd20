"""Both images of a pair get the same noise at the same timestep."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler
from prefloop.models.noise import Diffusion
from prefloop.train.denoise import chosen_only, noisy_pair, pair_errors, residuals
from prefloop.train.pair_denoiser import Errors, concat

DIFFUSION = Diffusion(DDPMScheduler(beta_schedule="scaled_linear"), tuple(range(1000)))


def sampled(b: int = 3) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    chosen, rejected, noise = (torch.randn(b, 4, 2, 2, generator=generator) for _ in range(3))
    embeds = torch.randn(b, 5, 8, generator=generator)
    return chosen, rejected, {"prompt_embeds": torch.cat([embeds, embeds])}, noise, torch.tensor([10, 500, 990])


def test_both_images_get_one_noise_and_one_timestep():
    chosen, rejected, conditions, noise, timesteps = sampled()
    pair = noisy_pair(DIFFUSION, chosen, rejected, conditions, noise, timesteps)
    assert torch.equal(pair.timesteps[:3], pair.timesteps[3:])
    assert torch.equal(pair.target[:3], pair.target[3:])
    assert torch.equal(pair.target[:3], noise)
    # what is left without the images' own fractions is the same noise
    alpha = DIFFUSION.scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    assert torch.allclose(pair.latents[:3] - alpha * chosen, pair.latents[3:] - alpha * rejected, atol=1e-5)


def test_perturbing_the_input_keeps_the_noise_of_a_pair_tied():
    chosen, rejected, conditions, noise, timesteps = sampled()
    pair = noisy_pair(DIFFUSION, chosen, rejected, conditions, noise, timesteps, noise + 0.1)
    alpha = DIFFUSION.scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    assert torch.allclose(pair.latents[:3] - alpha * chosen, pair.latents[3:] - alpha * rejected, atol=1e-5)
    assert torch.equal(pair.target, noise.repeat(2, 1, 1, 1))


def test_the_chosen_images_are_the_first_half():
    pair = noisy_pair(DIFFUSION, *sampled())
    half = chosen_only(pair)
    assert torch.equal(half.latents, pair.latents[:3])
    assert torch.equal(half.target, pair.target[:3])
    assert half.timesteps.tolist() == [10, 500, 990]
    assert torch.equal(half.conditions["prompt_embeds"], pair.conditions["prompt_embeds"][:3])


def test_errors_are_float32_means_per_image_whatever_the_model_runs_in():
    pair = noisy_pair(DIFFUSION, *sampled())

    def predict(_model: object, latents: torch.Tensor, _timesteps: object, _conditions: object) -> torch.Tensor:
        shift = torch.arange(1, len(latents) + 1)[:, None, None, None]
        return (pair.target + shift).to(torch.bfloat16)

    family: Any = SimpleNamespace(predict=predict)
    chosen, rejected = pair_errors(residuals(family, None, pair))
    assert chosen.dtype == rejected.dtype == torch.float32
    # predictions off by 1 to 6: squares 1, 4, 9 and 16, 25, 36, up to the rounding of bfloat16
    assert torch.allclose(chosen, torch.tensor([1.0, 4.0, 9.0]), rtol=0.05)
    assert torch.allclose(rejected, torch.tensor([16.0, 25.0, 36.0]), rtol=0.05)


def test_errors_of_several_batches_follow_one_another():
    parts = [
        Errors(
            torch.tensor([at]),
            torch.tensor([-at]),
            chosen_distance=torch.tensor([15 * at]),
            rejected_distance=torch.tensor([5 * at]),
        )
        for at in (1.0, 2.0, 3.0)
    ]
    together = concat(parts)
    assert together.chosen.tolist() == [1.0, 2.0, 3.0]
    assert together.rejected.tolist() == [-1.0, -2.0, -3.0]
    assert together.distance is not None
    assert together.distance.tolist() == [10.0, 20.0, 30.0]
    assert together.ref_chosen is None
