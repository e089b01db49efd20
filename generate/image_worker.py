"""What a worker of `generate` does: hold a model, generate batches, encode the images."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING
from uuid import UUID

from ..core.errors import IntegrityError
from ..core.executor import Pool, pool_of
from ..core.signals import StopSignal
from ..models.model import Model
from ..store.images import png_bytes
from .config import GenerateConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from .generations import Generation
    from .sampler import ImageSampler
    from .stage import Plan


@dataclass(frozen=True)
class ImageBatch:
    """Images that are generated at once."""

    generations: "list[Generation]"

    def __str__(self) -> str:
        first = self.generations[0]
        return f"the batch of {len(self.generations)} that begins with image {first.index} of {first.prompt[:80]!r}"


@dataclass(frozen=True)
class EncodedImage:
    data: bytes
    """A PNG."""
    width: int
    height: int


@dataclass(frozen=True)
class ModelFacts:
    """What the store keeps of a model, which only a loaded one tells."""

    description: dict
    n_truncated: int
    """Number of the prompts that are longer than the text encoder's limit."""
    batch_size: int
    """Images that it generates at once."""


class ImageWorker:
    def __init__(self, sampler: "ImageSampler") -> None:
        self.sampler, self._lock = sampler, Lock()

    def facts(self, prompts: list[str]) -> ModelFacts:
        n_truncated = self.sampler.n_truncated(prompts) if prompts else 0
        return ModelFacts(self.sampler.description, n_truncated, self.sampler.batch_size)

    def images(self, batch: ImageBatch) -> "list[Image]":
        with self._lock:
            return [image for _, some in self.sampler.batches(batch.generations) for image in some]

    def encoded_images(self, batch: ImageBatch) -> list[EncodedImage]:
        """As a worker sends them; it encodes a batch while the model generates the next one."""
        return encoded(self.images(batch))


def encoded(images: "Sequence[Image | EncodedImage]") -> list[EncodedImage]:
    """Images as PNGs; what a worker has encoded stays as it is."""
    return [
        image if isinstance(image, EncodedImage) else EncodedImage(png_bytes(image), image.width, image.height)
        for image in images
    ]


def image_workers(planned: "Plan") -> AbstractContextManager[Pool[ImageWorker]]:
    """The workers of a plan; each loads the model with its first job."""
    config, model = planned.config, planned.model
    if config.workers == 1:
        return pool_of(1, partial(_load, model, config))
    make = partial(_find_and_load, model.name, model.revision, model.model_id, config)
    return pool_of(config.workers, make, config.device)


def image_batches(missing: "Sequence[Generation]", size: int, stop: StopSignal) -> Iterator[ImageBatch]:
    """The missing images of a plan, as they are handed out: all of them, or up to a signal."""
    for start in range(0, len(missing), size):
        if stop.requested:
            return
        yield ImageBatch(list(missing[start : start + size]))


def _load(model: Model, config: GenerateConfig) -> ImageWorker:
    from .sampler import ImageSampler

    return ImageWorker(ImageSampler(model, config))


def _find_and_load(name: str, revision: str | None, model_id: UUID, config: GenerateConfig) -> ImageWorker:
    """The model by its name, perhaps on another machine.

    Raises:
        PrefloopError: if it does not exist there.
        IntegrityError: if it is another model there.
    """
    from ..models.resolve import find_model

    model = find_model(name, revision)
    if model.model_id != model_id:
        raise IntegrityError(f"on the worker {platform.node()}, {name} is another model; give it the same files")
    return _load(model, config)
