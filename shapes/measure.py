"""Measure the built-in world as it is shipped: the numbers of shapes/README.md.

python -m prefloop.shapes.measure
"""

import argparse
import random
from uuid import UUID

import numpy as np
import torch

from ..generate.config import GenerateConfig
from ..generate.prompts import read_prompts
from ..generate.sampler import Sampler
from ..generate.stage import Generation
from ..models.resolve import find_model
from ..relabel.scorers.registry import load_scorers
from .oracle import judge
from .scene import all_scenes, render, wrong
from .vae import pixels


def measure(n: int) -> dict[str, float]:
    """Shares 0..1, each over n pictures or pairs of pictures drawn for this."""
    rng = random.Random(777)
    scenes = [rng.choice(all_scenes()) for _ in range(n)]
    right = [render(scene, rng) for scene in scenes]
    bad = [render(wrong(scene, rng), rng) for scene in scenes]
    found = {
        "oracle, right pictures": float(
            np.mean([all(judge(s, i).values()) for s, i in zip(scenes, right, strict=True)])
        ),
        "oracle, wrong pictures": float(
            np.mean([not all(judge(s, i).values()) for s, i in zip(scenes, bad, strict=True)])
        ),
    }
    prompts = [str(scene) for scene in scenes]
    for scorer in load_scorers(["pickscore", "hps", "clip"], {"": "shapes"}):
        found[f"{scorer.name}, right above wrong"] = float(
            np.mean(scorer.score(prompts, right) > scorer.score(prompts, bad))
        )
    sampler = Sampler(find_model("shapes"), GenerateConfig(batch_size=32))
    with torch.no_grad():
        target = pixels(right)
        decoded = sampler.pipeline.vae.decode(sampler.pipeline.vae.encode(target).latent_dist.mean).sample
    found["autoencoder, mean squared error"] = float((decoded.clamp(-1, 1) - target).square().mean())
    asked = [Generation(prompt.text, 0, UUID(int=0)) for prompt in read_prompts("shapes-heldout")[::-1][:n]]
    drawn = [pair for batch, images in sampler.batches(asked) for pair in zip(batch, images, strict=True)]
    parts = [judge(one.prompt, image) for one, image in drawn]
    found["base model, held-out prompts satisfied"] = float(np.mean([all(part.values()) for part in parts]))
    found["base model, parts satisfied"] = float(np.mean([value for part in parts for value in part.values()]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=400)
    for name, value in measure(parser.parse_args().n).items():
        print(f"{name:<42}{value:.4f}")
