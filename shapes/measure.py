"""Measure the shipped built-in world: the numbers in shapes/README.md.

python -m prefloop.shapes.measure
"""

import argparse
import random

import numpy as np
import torch

from ..generate.config import GenerateConfig
from ..generate.sampler import ImageSampler
from ..generate.stage import plan
from ..relabel.scorers.registry import load_scorers
from .oracle import check
from .scene import all_scenes, render, wrong
from .vae import pixels


def measure(n: int, model: str = "shapes") -> dict[str, float]:
    """Fractions 0..1, each over n new images or pairs of images."""
    rng = random.Random(777)
    scenes = [rng.choice(all_scenes()) for _ in range(n)]
    right = [render(scene, rng) for scene in scenes]
    bad = [render(wrong(scene, rng), rng) for scene in scenes]
    measured = {
        "oracle, right images": float(np.mean([all(check(s, i).values()) for s, i in zip(scenes, right, strict=True)])),
        "oracle, wrong images": float(
            np.mean([not all(check(s, i).values()) for s, i in zip(scenes, bad, strict=True)])
        ),
    }
    prompts = [str(scene) for scene in scenes]
    for scorer in load_scorers(["pickscore", "hps", "clip"], {"": "shapes"}):
        measured[f"{scorer.name}, right above wrong"] = float(
            np.mean(scorer.score(prompts, right) > scorer.score(prompts, bad))
        )
    planned = plan(GenerateConfig(model=model, prompts="shapes-heldout", images_per_prompt=1, batch_size=32), None)
    sampler = ImageSampler(planned.model, planned.config)
    with torch.no_grad():
        target = pixels(right)
        decoded = sampler.pipeline.vae.decode(sampler.pipeline.vae.encode(target).latent_dist.mean).sample
    measured["autoencoder, mean squared error"] = float((decoded.clamp(-1, 1) - target).square().mean())
    parts = [
        check(item.prompt, image)
        for batch, images in sampler.batches(planned.generations[::-1][:n])
        for item, image in zip(batch, images, strict=True)
    ]
    measured["base model, held-out prompts satisfied"] = float(np.mean([all(part.values()) for part in parts]))
    measured["base model, parts satisfied"] = float(np.mean([value for part in parts for value in part.values()]))
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=400)
    parser.add_argument("--model", default="shapes", help="shapes or shapes-flow.")
    arguments = parser.parse_args()
    for name, value in measure(arguments.n, arguments.model).items():
        print(f"{name:<42}{value:.4f}")
