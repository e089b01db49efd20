"""Train the built-in world's AutoencoderKL: 64 x 64 x 3 pixels to 8 x 8 x 8 latents.

python -m prefloop.shapes.vae --folder build
"""

import argparse
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .fit import fit
from .scene import all_scenes, render


def untrained() -> Any:
    torch.manual_seed(1)
    model_class: Any = AutoencoderKL  # its type hints are narrower than its code
    return model_class(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def pixels(images) -> Tensor:
    """Images as (B, 3, H, W) in [-1, 1]."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(folder: Path, steps: int = 1800, batch: int = 16) -> Any:
    """The trained autoencoder, with latents of mean 0 and standard deviation 1 in every channel."""
    vae = untrained()
    scenes = all_scenes()
    rng = random.Random(11)
    pool = pixels([render(rng.choice(scenes), rng) for _ in range(12_000)])

    def loss_at(_: int) -> Tensor:
        target = pool[torch.randint(len(pool), (batch,))]
        posterior = vae.encode(target).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        error = decoded - target
        return error.square().mean() + 0.1 * error.abs().mean() + 1e-4 * posterior.kl().mean() / 512

    fit("vae", vae, loss_at, steps=steps, learning_rate=2e-3, folder=folder)
    vae.eval()
    _standardize(vae, pool[:2000])
    return vae


@torch.no_grad()
def _standardize(vae: Any, sample: Tensor) -> None:
    """Move each latent channel's mean and standard deviation into the weights: a pipeline has only one scaling factor."""
    moments = torch.cat([vae.encode(part).latent_dist.mean for part in sample.split(200)])
    mean, deviation = moments.mean((0, 2, 3)), moments.std((0, 2, 3))
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    # decoder first, with the old latents written as mean + deviation * new
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= deviation[None, :, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.weight[:channels] /= deviation[:, None, None, None]
    # training needed noisy latents, so that similar ones decode alike; encoding an image needs little noise
    into.bias[channels:] -= 2 * (deviation.log() + math.log(20))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("shapes-build"))
    parser.add_argument("--steps", type=int, default=1800)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    train(arguments.folder, arguments.steps).save_pretrained(arguments.folder / "vae")
