"""What a worker of `relabel` does: hold a scorer, read the images of a batch, score or embed them."""

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..core.errors import IntegrityError
from ..store import ImageError, load_image
from .auto_batch import AutoBatch
from .image_loader import N_THREADS, Item
from .scorers.calls import n_truncated, scores_and_columns
from .scorers.dual_encoder import DualEncoderScorer
from .scorers.own_code import as_embeddings, own_code
from .scorers.registry import identity, load_scorers

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ScoringJob:
    """A batch of images; B is their number."""

    folder: Path
    """Of the store."""
    items: list[Item]
    data: list[bytes | None] | None = None
    """What the B files contain, None for one that cannot be read; without it the worker reads them."""
    tags: list[str | None] = field(default_factory=list)
    """Of the B prompts, in JSON; empty if the scorer needs none."""
    prompts: list[list[str]] = field(default_factory=list)
    """To be embedded besides, in batches."""

    def __str__(self) -> str:
        return f"the batch of {len(self.items)} images that begins with {self.items[0].path}"

    def with_data(self) -> "ScoringJob":
        return replace(self, data=[_bytes(self.folder / item.path) for item in self.items])


@dataclass(frozen=True)
class ScoringResult:
    readable: list[Item]
    """R items; the images of the others cannot be used."""
    values: NDArray[np.float32]
    """Scores (R,), or (R, 1 + columns), or embeddings (R, E)."""
    unreadable: Counter[str]
    """Images by reason."""
    prompts: NDArray[np.float32] | None = None
    """Embeddings of the job's prompts (T, E)."""
    n_truncated: int = 0
    """Of the job's prompts."""


class ScorerWorker:
    def __init__(self, name: str, checkpoints: Mapping[str, str], options: Sequence[Any], expected: str) -> None:
        """
        Args:
            checkpoints, options: as `load_scorers` takes them.
            expected: the scorer's name@revision on the driver.

        Raises:
            IntegrityError: if it is another scorer here.
        """
        (self.scorer,) = load_scorers((name,), checkpoints, *options)
        if identity(self.scorer) != expected:
            raise IntegrityError(
                f"on the worker {platform.node()}, {name} is {identity(self.scorer)}, not {expected}; give it the same weights"
            )
        self._halved = {"images": AutoBatch(self.scorer.name), "prompts": AutoBatch(self.scorer.name)}
        self._lock = Lock()
        """The next batch is decoded while the model scores this one."""

    def scores(self, job: ScoringJob) -> ScoringResult | None:
        """None if the store's files are not on this machine."""

        tags = dict(zip((item.prompt_id for item in job.items), job.tags, strict=False))

        def score(batch: Sequence[Item], images: Sequence) -> NDArray[np.float32]:
            batch_tags = [tags.get(item.prompt_id) for item in batch]
            return scores_and_columns(self.scorer, [item.prompt for item in batch], images, batch_tags)

        read = _read(job)
        if read is None:
            return None
        readable, images, unreadable = read
        with self._lock, own_code(self.scorer):
            values = self._halved["images"](score, readable, images) if readable else np.empty(0, np.float32)
        return ScoringResult(readable, values, unreadable)

    def embeddings(self, job: ScoringJob) -> ScoringResult | None:
        """None if the store's files are not on this machine."""
        scorer = cast("DualEncoderScorer", self.scorer)  # the driver has asked

        def preprocess(image: "Image") -> Any:
            with own_code(scorer):
                return scorer.preprocess(image)

        def embed(pixels: Sequence) -> NDArray[np.float32]:
            return as_embeddings(scorer, scorer.embed_images(pixels), len(pixels))

        read = _read(job, preprocess)
        if read is None:
            return None
        readable, pixels, unreadable = read
        with self._lock, own_code(scorer):
            values = self._halved["images"](embed, pixels) if readable else np.empty((0, 0), np.float32)
        of_prompts = [self.prompt_embeddings(batch) for batch in job.prompts]
        prompts = np.concatenate([embeddings for embeddings, _ in of_prompts]) if of_prompts else None
        return ScoringResult(readable, values, unreadable, prompts, sum(n for _, n in of_prompts))

    def prompt_embeddings(self, prompts: list[str]) -> tuple[NDArray[np.float32], int]:
        """(T, E), and how many prompts are longer than the scorer reads."""
        scorer = cast("DualEncoderScorer", self.scorer)

        def embed(batch: Sequence[str]) -> NDArray[np.float32]:
            return as_embeddings(scorer, scorer.embed_prompts(batch), len(batch))

        with self._lock, own_code(scorer):
            return self._halved["prompts"](embed, prompts), n_truncated(scorer, prompts)

    def n_truncated(self, prompts: list[str]) -> int:
        with self._lock, own_code(self.scorer):
            return n_truncated(self.scorer, prompts)


def _read(
    job: ScoringJob, preprocess: "Callable[[Image], Any] | None" = None
) -> tuple[list[Item], list[Any], Counter[str]] | None:
    """The items whose images can be used, those images, and the others by reason. None if no file is on this machine."""
    paths = [job.folder / item.path for item in job.items]
    if job.data is None and not any(path.exists() for path in paths):
        return None

    def load(item: Item, source: "Path | bytes | None") -> Any:
        try:
            if source is None:
                raise ImageError("missing", f"{item.path} cannot be read")
            image = load_image(source, item.image_id)
            return preprocess(image) if preprocess else image
        except ImageError as error:
            return error

    with ThreadPoolExecutor(N_THREADS) as threads:
        loaded = list(threads.map(load, job.items, paths if job.data is None else job.data))
    readable = [item for item, image in zip(job.items, loaded, strict=True) if not isinstance(image, ImageError)]
    images = [image for image in loaded if not isinstance(image, ImageError)]
    return readable, images, Counter(f"image {image.reason}" for image in loaded if isinstance(image, ImageError))


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
