"""Pictures for a few held-out prompts while training: the reference's and the model's, from the same noise."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ...models.loading import load_root
from ...models.model import Model
from ...store import UsageError
from ...store.images import png_bytes
from ..cache import EMPTY_PROMPT_ID
from ..config import TrainConfig
from ..data import TrainingData, derived_seed
from ..pairs import Pair
from ..policy import Policy, load_vae
from ..run_folder.files import atomic_write

STEPS, GUIDANCE = 20, 5.0
BORDER, LINE = 4, 16  # pixels
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


class Samples:
    """Draws with the model in training, through the pipeline's own sampler and the cached texts."""

    def __init__(self, data: TrainingData, policy: Policy, model: Model, config: TrainConfig, output: Path) -> None:
        self.data, self.policy, self.model, self.config = data, policy, model, config
        self.folder = output / "samples"
        if config.sample_steps and data.family.kind == "sdxl-refiner":
            raise UsageError("sample-steps cannot draw with a refiner, which begins with a picture; leave it out")
        self.pairs = _distinct(data.pairs.validation or data.pairs.train)[: config.n_samples]

    def draw(self, step: int, device: torch.device) -> None:
        """Write samples/step-N.png: a row for each prompt, the reference's picture to the left and today's to the right."""
        self.folder.mkdir(exist_ok=True)
        kept = [self.folder / f"reference-{number}.png" for number in range(len(self.pairs))]
        pipeline = self._pipeline(device)
        if not all(path.exists() for path in kept):
            if step and not self.policy.has_reference:
                return
            with self.policy.reference(self.policy.unet):
                for path, image in zip(kept, self._images(pipeline, device), strict=True):
                    atomic_write(path, png_bytes(image))
        images = self._images(pipeline, device)
        before = [Image.open(path).convert("RGB") for path in kept]
        drawn = sheet(before, images, [pair.prompt for pair in self.pairs])
        atomic_write(self.folder / f"step-{step:06d}.png", png_bytes(drawn))

    def _pipeline(self, device: torch.device) -> Any:
        pipeline = load_root(
            self.model,
            unet=self.policy.unet,
            vae=load_vae(self.model, self.config.vae, device),
            text_encoder=None,
            # without a safety checker, which blacks images out, and without a watermark
            **({"text_encoder_2": None, "add_watermarker": False} if self.data.family.is_xl else UNCHECKED),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def _images(self, pipeline: Any, device: torch.device) -> list[Image.Image]:
        dtype, xl = self.policy.unet.dtype, self.data.family.is_xl
        side = self.config.resolution or self.data.family.resolution
        with _not_training(self.policy.unet):
            images = []
            for pair in self.pairs:
                asked: dict[str, Any] = {}
                for name, argument in (("hidden", "prompt_embeds"), ("pooled", "pooled_prompt_embeds")):
                    if name == "hidden" or xl:
                        for key, prefix in ((pair.prompt_id, ""), (EMPTY_PROMPT_ID, "negative_")):
                            asked[prefix + argument] = self.data.texts.rows(name, [key]).to(device, dtype)
                seed = derived_seed(self.config.seed, "sample", pair.prompt_id)
                turbo = self.data.family.kind == "sdxl-turbo"
                images += pipeline(
                    **asked,
                    num_inference_steps=4 if turbo else STEPS,
                    guidance_scale=0.0 if turbo else GUIDANCE,
                    height=side,
                    width=side,
                    generator=torch.Generator("cpu").manual_seed(seed),
                ).images
        return images


@contextmanager
def _not_training(unet: Any):
    was = unet.training
    unet.eval()
    try:
        yield
    finally:
        unet.train(was)


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    return list({pair.prompt_id: pair for pair in reversed(list(pairs))}.values())[::-1]


def sheet(before: Sequence[Image.Image], after: Sequence[Image.Image], prompts: Sequence[str]) -> Image.Image:
    """A row for each prompt: its text, the picture before, the picture after."""
    width, height = after[0].size
    canvas = Image.new("RGB", (2 * width + 3 * BORDER, len(after) * (height + LINE + BORDER) + BORDER), (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    for row, (left, right, prompt) in enumerate(zip(before, after, prompts, strict=True)):
        top = BORDER + row * (height + LINE + BORDER)
        pen.text((BORDER, top), prompt.replace("\n", " ")[: 2 * width // 6], fill=(0, 0, 0))
        canvas.paste(left, (BORDER, top + LINE))
        canvas.paste(right, (2 * BORDER + width, top + LINE))
    return canvas
