"""A pipeline that draws pictures in batches across prompts, each from its own noise."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..core.device import best_device
from ..core.errors import PrefloopError, UsageError
from ..core.ids import noise_seed
from ..models.pipelines import dtype_of, load_pipeline
from ..models.resolve import Model
from ..models.text_to_image import first_line, refuse_resolution, set_scheduler
from .config import GenerateConfig
from .defaults import settled

if TYPE_CHECKING:
    from .stage import Generation


class Sampler:
    """Draws with fixed settings. Which picture belongs to a generation does not depend on batches or their order."""

    def __init__(self, model: Model, config: GenerateConfig) -> None:
        self.config = config = settled(config, model, None)
        self.device = best_device(config.device)
        pipeline: Any = load_pipeline(model, self.device, dtype_of(config.dtype, self.device, model))
        settings = config.sampler()
        set_scheduler(pipeline, settings["scheduler"], settings["num_inference_steps"])
        refuse_resolution(pipeline, config.resolution)
        self.pipeline = pipeline
        self.described = {
            "pipeline": type(pipeline).__name__,
            "source": model.source if "/" in model.name else model.name,
            "base": None if model.base is None else model.base.name,
            "scheduler": type(pipeline.scheduler).__name__,
        }

    def n_truncated(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text encoder reads."""
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        if tokenizer is None:
            return 0
        lengths = [len(ids) for ids in tokenizer(prompts, truncation=False, verbose=False).input_ids]
        return sum(length > tokenizer.model_max_length for length in lengths)

    def batches(self, missing: "list[Generation]") -> "Iterator[tuple[list[Generation], list[Image.Image]]]":
        """Each batch with its pictures; the batch is halved where memory runs out."""
        size, at = self.config.batch_size, 0
        while at < len(missing):
            batch = missing[at : at + size]
            try:
                images = self._draw(batch)
            except Exception as error:
                if not _out_of_memory(error):  # the pipeline and its settings are the user's: what fails there is named
                    how = f"{type(self.pipeline).__name__} with {type(self.pipeline.scheduler).__name__}"
                    raise UsageError(f"a {how} cannot draw with these settings: {first_line(error)}") from error
                if size == 1:
                    raise PrefloopError(
                        "memory runs out at batch size 1; give a smaller --resolution, or --dtype float16"
                    ) from error
                size = max(1, size // 2)
                print(f"memory ran out; going on with batch size {size}", file=sys.stderr)
                continue
            yield batch, images
            at += len(batch)

    @torch.no_grad()
    def _draw(self, batch: "list[Generation]") -> list[Image.Image]:
        config = self.config
        generators = [
            torch.Generator("cpu").manual_seed(noise_seed(one.prompt, config.seed, one.index)) for one in batch
        ]
        asked: dict[str, Any] = {
            "prompt": [one.prompt for one in batch],
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale,
            "generator": generators,
            "output_type": "pil",
        }
        if config.negative_prompt:
            asked["negative_prompt"] = [config.negative_prompt] * len(batch)
        if config.resolution is not None:
            asked |= {"height": config.resolution, "width": config.resolution}
        return self.pipeline(**asked).images


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
