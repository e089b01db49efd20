"""What the built-in world's denoisers learn from: latents of rendered scenes and their prompts, some of them wrong.

Some prompts are wrong, as on the web, so that a base model follows only some of its prompts: there is something for
preferences to improve.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .scene import Scene, all_scenes, render, wrong
from .vae import pixels
from .words import tokenizer

WRONG_PROMPTS = 0.3  # fraction of the images whose prompt is wrong in one part
EMPTY_PROMPTS = 0.1
N_IMAGES = 16_000


class TrainingSet:
    """Latents of N_IMAGES scenes, unscaled, (N, 8, 8, 8), and every text of this world as token ids."""

    def __init__(self, folder: Path, vae: Any) -> None:
        """
        Args:
            folder: for `latents.safetensors`, which is encoded once.
        """
        rng = random.Random(21)
        scenes = all_scenes()
        single = [scene for scene in scenes if len(scene.shapes) == 1]
        self.scenes = [rng.choice(single) if rng.random() < 0.08 else rng.choice(scenes) for _ in range(N_IMAGES)]
        self.latents = _latents(folder / "latents.safetensors", vae, self.scenes)
        # every possible text once: wrong versions of prompts are prompts of this world too
        texts = [""] + [str(scene) for scene in scenes]
        self._row = {text: at for at, text in enumerate(texts)}
        self._ids = torch.tensor(tokenizer()(texts, padding="max_length", truncation=True).input_ids)

    def token_ids(self, images: Sequence[int], rng: random.Random) -> Tensor:
        """The prompt of each image, wrong or empty for some; (B, MAX_LENGTH)."""
        rows = []
        for index in images:
            chance, scene = rng.random(), self.scenes[index]
            if chance < EMPTY_PROMPTS:
                rows.append(0)
            else:
                rows.append(self._row[str(wrong(scene, rng) if chance < EMPTY_PROMPTS + WRONG_PROMPTS else scene)])
        return self._ids[rows]


def _latents(path: Path, vae: Any, scenes: Sequence[Scene]) -> Tensor:
    if not path.exists():
        with torch.no_grad():
            parts = []
            for at in range(0, len(scenes), 200):
                images = [render(scene, random.Random(at + k)) for k, scene in enumerate(scenes[at : at + 200])]
                parts.append(vae.encode(pixels(images)).latent_dist.mean)
        save_file({"latents": torch.cat(parts).contiguous()}, path)
    return load_file(path)["latents"]
