"""Generate images with a pipeline, in batches across prompts, each image from its own noise."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..core.chunks import chunks
from ..core.device import best_device
from ..core.errors import PrefloopError, UsageError
from ..core.ids import noise_seed
from ..models.families import known_family
from ..models.model import Model
from ..models.pipelines import dtype_of, load_pipeline
from ..models.text_to_image import (
    call_arguments,
    family_with_sizes,
    first_line,
    longest_tokenizer,
    refuse_resolution,
    set_scheduler,
)
from .config import GenerateConfig
from .decode import decode_sparingly, free_memory, is_out_of_memory
from .fitting import batch_size_of

if TYPE_CHECKING:
    from .generations import Generation

PROMPTS_AT_ONCE = 4096
"""Whose tokens are counted; a token takes 8 bytes and more."""


class ImageSampler:
    """A loaded pipeline with fixed settings. A generation's image does not depend on the batches or their order."""

    def __init__(self, model: Model, config: GenerateConfig) -> None:
        """
        Args:
            config: as `resolve_defaults` returns it.
        """
        self.config, self.device = config, best_device(config.device)
        dtype = dtype_of(config.dtype, self.device, model)
        pipeline: Any = load_pipeline(model, self.device, dtype)
        self.batch_size = batch_size_of(model, config, self.device, dtype)
        sampling = config.sampling()
        set_scheduler(pipeline, sampling["scheduler"], sampling["num_inference_steps"])
        family = known_family(model)
        if family is not None and (config.dtype, family.dtype) == ("float16", "bfloat16"):
            print(
                f"{model.name} was made for bfloat16 and may overflow in float16; --dtype bfloat16 is safer",
                file=sys.stderr,
            )
        refuse_resolution(pipeline, family, config.resolution)
        # the side that some pipelines have by default is that of their largest model
        sized = family_with_sizes(family)
        self.side = config.resolution or (None if sized is None else sized.resolution)
        assert config.guidance_scale is not None
        self.arguments = call_arguments(type(pipeline), family, config.guidance_scale, config.negative_prompt or None)
        """Those that are the same for every image."""
        decode_sparingly(pipeline, None if config.vae_dtype == "auto" else getattr(torch, config.vae_dtype))
        self.pipeline = pipeline
        self.description = {
            "pipeline": type(pipeline).__name__,
            "source": model.source if "/" in model.name else model.name,
            "base": None if model.base is None else model.base.name,
            "scheduler": type(pipeline.scheduler).__name__,
        }

    def n_truncated(self, prompts: list[str]) -> int:
        """Number of prompts that are longer than the text encoder's limit."""
        longest = longest_tokenizer(self.pipeline, self.arguments.get("max_sequence_length"))
        if longest is None:
            return 0
        tokenizer, limit = longest
        return sum(
            len(ids) > limit
            for texts in chunks(prompts, PROMPTS_AT_ONCE)
            for ids in tokenizer(texts, truncation=False, verbose=False).input_ids
        )

    def batches(self, missing: "Sequence[Generation]") -> "Iterator[tuple[Sequence[Generation], list[Image.Image]]]":
        """Yield each batch with its images; the batch size is halved when memory runs out, and stays so."""
        start = 0
        while start < len(missing):
            size = self.batch_size
            batch = missing[start : start + size]
            try:
                images = self._generate(batch)
            except PrefloopError:
                raise
            except Exception as error:
                # the pipeline and its settings are the user's: say which of them failed
                if not is_out_of_memory(error):
                    failed = f"{type(self.pipeline).__name__} with {type(self.pipeline.scheduler).__name__}"
                    raise UsageError(f"a {failed} cannot generate with these settings: {first_line(error)}") from error
                if size == 1:
                    raise PrefloopError(
                        "out of memory at batch size 1; give a smaller --resolution, or --dtype float16"
                    ) from error
                images = None
            if images is None:
                self.batch_size = max(1, size // 2)
                print(f"out of memory; continuing with batch size {self.batch_size}", file=sys.stderr)
                free_memory()
                continue
            yield batch, images
            start += len(batch)

    @torch.no_grad()
    def _generate(self, batch: "Sequence[Generation]") -> list[Image.Image]:
        config = self.config
        generators = [
            torch.Generator("cpu").manual_seed(noise_seed(item.prompt, config.seed, item.index)) for item in batch
        ]
        arguments: dict[str, Any] = {
            "prompt": [item.prompt for item in batch],
            "num_inference_steps": config.num_inference_steps,
            "generator": generators,
            "output_type": "pil",
        } | self.arguments
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(batch)
        if self.side is not None:
            arguments |= {"height": self.side, "width": self.side}
        return self.pipeline(**arguments).images
