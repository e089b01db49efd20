"""Images for a few held-out prompts during training: the reference's and the policy's, from the same noise."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...core.files import write_atomic
from ...core.id_columns import keys_of
from ...models.loading import load_root
from ...models.model import Model
from ...models.text_to_image import pipeline_class, without_filters
from ...store.images import png_bytes
from ...store.lazy_rows import LazyRows
from ..cache import EMPTY_PROMPT_ID
from ..config import TrainConfig
from ..data import TrainingData
from ..encoders import load_vae
from ..pairs import Pair
from ..placement import in_float32
from ..policy import Policy
from ..ranks import ALONE, Ranks
from ..seeds import derived_seed

STEPS, GUIDANCE = 20, 5.0  # of U-Nets that are not distilled; at most that many steps of others
BORDER, LINE = 4, 16  # pixels


class Samples:
    """Generates with the policy, through the pipeline's own noise scheduler and the cached prompt embeddings.

    If the policy's weights are split over the processes, all of them generate the same, and the main one writes.
    """

    def __init__(
        self,
        data: TrainingData,
        policy: Policy,
        model: Model,
        config: TrainConfig,
        output: Path,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.data, self.policy, self.model, self.config = data, policy, model, config
        self.folder = output / "samples"
        self.pairs = _distinct(data.pairs.validation or data.pairs.train, config.n_samples)

    def write(self, step: int, device: torch.device) -> None:
        """Write samples/step-N.png: a row for each prompt, the reference's image on the left and the policy's on the right."""
        if not self._has_references():
            if step and not self.policy.has_reference:
                return
            self._write_references(device)
        images = self._images(self.policy.component, device)
        if not self.ranks.is_main:
            return
        before = [Image.open(path).convert("RGB") for path in self._references]
        rows = sheet(before, images, [pair.prompt for pair in self.pairs])
        write_atomic(self.folder / f"step-{step:06d}.png", png_bytes(rows))

    def keep_references(self, device: torch.device) -> None:
        """Generate the reference's images before the first step, if the run will not have a reference after it."""
        if self.config.sample_steps and not self.policy.has_reference and not self._has_references():
            self._write_references(device)

    @property
    def _references(self) -> list[Path]:
        return [self.folder / f"reference-{number}.png" for number in range(len(self.pairs))]

    def _has_references(self) -> bool:
        exist = all(path.exists() for path in self._references)
        return self.ranks.from_main(exist) if self.policy.sharded else exist

    def _write_references(self, device: torch.device) -> None:
        self.folder.mkdir(exist_ok=True)
        # a LoRA's reference is the component itself
        with (
            self.policy.reference(self.policy.component) as component,
            nullcontext() if self.policy.lora else in_float32(component),
        ):
            for path, image in zip(self._references, self._images(component, device), strict=True):
                if self.ranks.is_main:
                    write_atomic(path, png_bytes(image))

    def _pipeline(self, component: Any, device: torch.device) -> Any:
        family = self.data.family
        parts = without_filters(pipeline_class(family.pipeline_class)) | dict.fromkeys(family.text_encoders)
        parts |= {family.component: component, "vae": load_vae(self.model, self.config.vae, device)}
        pipeline = load_root(self.model, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def _images(self, component: Any, device: torch.device) -> list[Image.Image]:
        family, pipeline = self.data.family, self._pipeline(component, device)
        side = self.config.resolution or family.resolution
        steps, guidance = STEPS, GUIDANCE
        if family.distilled or family.component == "transformer":
            steps, guidance = min(family.usual[0], STEPS), family.usual[1]
        with _eval_mode(component):
            images = []
            for pair in self.pairs:
                embeds = (self._embeds(prompt_id, device) for prompt_id in (pair.prompt_id, EMPTY_PROMPT_ID))
                seed = derived_seed(self.config.seed, "sample", pair.prompt_id)
                images += pipeline(
                    **family.call_arguments(*embeds),
                    **family.call_settings,
                    num_inference_steps=steps,
                    **{family.guidance_argument: guidance},
                    height=side,
                    width=side,
                    generator=torch.Generator("cpu").manual_seed(seed),
                ).images
        return images

    def _embeds(self, prompt_id: UUID, device: torch.device) -> dict[str, Tensor]:
        rows, dtype = self.data.prompt_embeds.ragged, self.policy.component.dtype
        return {name: rows(name, [prompt_id])[0][None].to(device, dtype) for name in self.data.family.prompt_tensors}


@contextmanager
def _eval_mode(component: Any) -> Iterator[None]:
    training = component.training
    component.eval()
    try:
        yield
    finally:
        component.train(training)


def _distinct(pairs: LazyRows[Pair], n: int) -> list[Pair]:
    """The first pairs of n prompts, of those whose last pair comes first."""
    prompts = keys_of(pairs.table["prompt_id"])
    _, first = np.unique(prompts, return_index=True)
    _, from_the_end = np.unique(prompts[::-1], return_index=True)
    return list(pairs.select(first[np.argsort(-from_the_end, kind="stable")][:n]))


def sheet(before: Sequence[Image.Image], after: Sequence[Image.Image], prompts: Sequence[str]) -> Image.Image:
    """A row for each prompt: its text, the image before, the image after."""
    width, height = after[0].size
    canvas = Image.new("RGB", (2 * width + 3 * BORDER, len(after) * (height + LINE + BORDER) + BORDER), (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    for row, (left, right, prompt) in enumerate(zip(before, after, prompts, strict=True)):
        top = BORDER + row * (height + LINE + BORDER)
        pen.text((BORDER, top), prompt.replace("\n", " ")[: 2 * width // 6], fill=(0, 0, 0))
        canvas.paste(left, (BORDER, top + LINE))
        canvas.paste(right, (2 * BORDER + width, top + LINE))
    return canvas
