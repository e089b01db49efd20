"""Train the built-in world's four scorers, each in the format of the real one.

    python -m prefloop.shapes.scorers pickscore --folder build

PickScore is an HF CLIPModel with its processor, HPS an open_clip checkpoint under the key state_dict, CLIP an open_clip
folder, Aesthetics an HF CLIP vision model with a head of linear layers. Each has its own seed and its own images.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from .fit import fit
from .scene import COLORS, FORMS, SIZE, Scene, all_scenes, render, wrong
from .scorer_networks import Aesthetic, EncoderWithSceneHead, HFDualEncoder, OpenCLIPDualEncoder
from .vae import pixels
from .words import tokenizer

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
DEVIATION = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
N_PAIRS = 7_000


@dataclass(frozen=True)
class Recipe:
    """What differs between the trainings of two scorers."""

    seed: int
    reconstructed: float
    """Fraction of the images that pass through the autoencoder, with noise on their latents."""
    malformed: float
    """Fraction of the rejected images that mix two images or lack a shape."""
    steps: int = 1200


RECIPES = {
    "pickscore": Recipe(seed=31, reconstructed=0.4, malformed=0.3),
    "hps": Recipe(seed=32, reconstructed=0.3, malformed=0.4),
    "clip": Recipe(seed=33, reconstructed=0.3, malformed=0.15),
    "aesthetics": Recipe(seed=34, reconstructed=0.4, malformed=0.3, steps=900),
}


@dataclass(frozen=True)
class Pool:
    """Two images of each scene: one right, one wrong."""

    right: Tensor  # (N, 3, 64, 64) in [-1, 1]
    wrong: Tensor  # (N, 3, 64, 64)
    scenes: list[Scene]
    layouts: list[Scene]
    """What the right image shows: the scene, with "and" replaced by the shapes' positions."""
    wrong_layouts: list[Scene | None]
    """What the wrong image shows; None if it is malformed."""


def _with_positions(scene: Scene, rng: random.Random) -> Scene:
    if scene.relation != "and":
        return scene
    shapes = scene.shapes if rng.random() < 0.5 else scene.shapes[::-1]
    return Scene(shapes, rng.choice(("left of", "above")))


def satisfied(text: Scene, layout: Scene) -> bool:
    """Whether an image of `layout` and nothing else is right for the text."""
    if text.relation == "and":
        return set(text.shapes) == set(layout.shapes)
    return text == layout


@torch.no_grad()
def _pool(recipe: Recipe, vae: Any) -> Pool:
    rng = random.Random(recipe.seed)
    scenes = [rng.choice(all_scenes()) for _ in range(N_PAIRS)]
    layouts = [_with_positions(scene, rng) for scene in scenes]
    wrong_layouts: list[Scene | None] = []
    for scene in scenes:
        lacks = len(scene.shapes) == 2 and rng.random() < recipe.malformed / 2
        wrong_layouts.append(Scene((rng.choice(scene.shapes),)) if lacks else _with_positions(wrong(scene, rng), rng))
    right = pixels([render(layout, rng) for layout in layouts])
    wrong_images = pixels([render(layout, rng) for layout in wrong_layouts if layout is not None])
    torch.manual_seed(recipe.seed)
    for images in (right, wrong_images):
        for part in torch.randperm(N_PAIRS)[: int(recipe.reconstructed * N_PAIRS)].split(200):
            latents = vae.encode(images[part]).latent_dist.mean
            noise = torch.rand(len(part), 1, 1, 1) * 0.35
            if images is wrong_images:  # two images overlaid: what a diffusion model makes when it cannot decide
                mixed = torch.rand(len(part), 1, 1, 1) < recipe.malformed / 2
                latents = torch.where(mixed, (latents + latents.roll(1, 0)) / 2, latents)
                for index in part[mixed.flatten()].tolist():
                    wrong_layouts[index] = None
            images[part] = vae.decode(latents + noise * torch.randn_like(latents)).sample.clamp(-1, 1)
    return Pool(right, wrong_images, scenes, layouts, wrong_layouts)


def _augmented(images: Tensor) -> Tensor:
    """Shifted by up to 3 pixels, normalized for CLIP."""
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    x, y = torch.randint(0, 7, (2,)).tolist()
    return ((padded[:, :, y : y + SIZE, x : x + SIZE] + 1) / 2 - MEAN) / DEVIATION


def _scene_labels(layout: Scene | None) -> list[int]:
    """Color and form of the first and second shape, and their relation; the loss ignores -100."""
    if layout is None:
        return [-100] * 5
    colors, forms = list(COLORS), [str(form) for form in FORMS]
    labels = [number for shape in layout.shapes for number in (colors.index(shape.color), forms.index(shape.form))]
    return [*labels, *[-100] * (4 - len(labels)), (None, "left of", "above").index(layout.relation)]


def train_dual_encoder(
    name: str, encoder: HFDualEncoder | OpenCLIPDualEncoder, folder: Path, vae: Any, batch: int = 40
) -> None:
    """Contrast images with right and wrong prompts, and each prompt's right image with a wrong one."""
    recipe = RECIPES[name]
    pool = _pool(recipe, vae)
    texts = [str(scene) for scene in all_scenes()]
    row = {text: at for at, text in enumerate(texts)}
    ids = torch.tensor(tokenizer()(texts, padding="max_length", truncation=True).input_ids)
    scene_labels = torch.tensor([_scene_labels(layout) for layout in [*pool.layouts, *pool.wrong_layouts]])
    model = EncoderWithSceneHead(encoder)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(recipe.seed * 1_000_000 + step)
        at = torch.randint(N_PAIRS, (batch,))
        indices = at.tolist()
        text_scenes = [pool.scenes[index] for index in indices]
        text_scenes += [pool.wrong_layouts[index] or wrong(pool.scenes[index], rng) for index in indices]
        text_scenes += [wrong(pool.scenes[index], rng) for index in indices]
        layouts = [pool.layouts[index] for index in indices] + [pool.wrong_layouts[index] for index in indices]
        text = encoder.text(ids[[row[str(scene)] for scene in text_scenes]])
        image = encoder.image(_augmented(torch.cat([pool.right[at], pool.wrong[at]])))
        similarity = encoder.scale * image @ text.T  # (2 batch, 3 batch)
        # another text that is also true of the image is not a counterexample
        also = torch.tensor(
            [[layout is not None and satisfied(scene, layout) for scene in text_scenes] for layout in layouts]
        )
        own = torch.arange(2 * batch)
        also[own, own] = False
        valid = torch.tensor([layout is not None for layout in layouts])
        against_texts = F.cross_entropy(similarity.masked_fill(also, -1e4)[valid], own[valid])
        first = own[:batch]
        against_image = F.softplus(similarity[first + batch, first] - similarity[first, first]).mean()
        scene_loss = model.scene_loss(image, scene_labels[torch.cat([at, at + N_PAIRS])])
        return against_texts + against_image + scene_loss

    fit(name, model, loss_at, steps=recipe.steps, learning_rate=1.2e-3, folder=folder, save_every=100)


def painted(images: Tensor) -> Tensor:
    """Fraction of each image that is not background, (B,), 0..1. Images in [-1, 1]."""
    return ((images.amin(1) + 1) / 2 < 0.85).float().mean((1, 2))


def train_aesthetics(model: Aesthetic, folder: Path, vae: Any, batch: int = 64) -> None:
    """Learn how much of the image is painted: 1 for an empty one, 10 for 30 % of it."""
    recipe = RECIPES["aesthetics"]
    pool = _pool(recipe, vae)
    images = torch.cat([pool.right, pool.wrong])
    target = 1 + 30 * painted(images)

    def loss_at(step: int) -> Tensor:
        at = torch.randint(
            len(images), (batch,), generator=torch.Generator().manual_seed(recipe.seed * 1_000_000 + step)
        )
        return F.mse_loss(model(_augmented(images[at])), target[at])

    fit("aesthetics", model, loss_at, steps=recipe.steps, learning_rate=1e-3, folder=folder, save_every=100)


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().half().contiguous() for name, tensor in state.items()}


def train(name: str, folder: Path) -> None:
    """Train one scorer and save it in the format of the real one, in FOLDER/NAME."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    seed, out = RECIPES[name].seed, folder / name
    out.mkdir(parents=True, exist_ok=True)
    if name == "pickscore":
        encoder = HFDualEncoder(seed)
        train_dual_encoder(name, encoder, folder, vae)
        encoder.clip.half().save_pretrained(out)
        tokenizer().save_pretrained(out)
        _processor().save_pretrained(out)
    elif name in ("hps", "clip"):
        encoder = OpenCLIPDualEncoder(seed, out)
        train_dual_encoder(name, encoder, folder, vae)
        state = _half(encoder.clip.state_dict())
        if name == "hps":
            torch.save({"state_dict": state}, out / "hps.pt")
        else:
            save_file(state, out / "open_clip_model.safetensors")
    else:
        model = Aesthetic(seed)
        train_aesthetics(model, folder, vae)
        model.vision.half().save_pretrained(out)
        _processor().save_pretrained(out)
        save_file(_half(model.layers.state_dict(prefix="layers.")), out / "head.safetensors")


def _processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(RECIPES))
    parser.add_argument("--folder", type=Path, default=Path("shapes-build"))
    arguments = parser.parse_args()
    for name in arguments.names:
        train(name, arguments.folder)
