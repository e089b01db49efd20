"""Pictures read, decoded and preprocessed by threads while the model works on those before them."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..store import ImageError, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

DECODERS = max(2, min(16, (os.cpu_count() or 2)))
BATCHES_AHEAD = 3


@dataclass(frozen=True)
class Item:
    """A picture to be scored for a prompt."""

    prompt_id: UUID
    image_id: UUID
    prompt: str
    path: str
    """Below the store's folder."""


def decoded(
    folder: Path,
    items: Sequence[Item],
    batch_size: int,
    bad: Counter[str],
    preprocess: "Callable[[Image], Any] | None" = None,
) -> Iterator[tuple[list[Item], list[Any]]]:
    """Batches of items with their pictures, or what `preprocess` makes of them; unreadable ones are counted by reason
    and left out."""

    def load(item: Item) -> Any:
        try:
            image = load_image(folder / item.path, item.image_id)
            return preprocess(image) if preprocess else image
        except ImageError as error:
            return error

    with ThreadPoolExecutor(DECODERS) as pool:
        rest = (list(items[at : at + batch_size]) for at in range(0, len(items), batch_size))
        ahead: deque[tuple[Sequence[Item], list[Future]]] = deque()
        try:
            while True:
                for batch in islice(rest, BATCHES_AHEAD - len(ahead)):
                    ahead.append((batch, [pool.submit(load, item) for item in batch]))
                if not ahead:
                    return
                batch, futures = ahead.popleft()
                good, images = [], []
                for item, future in zip(batch, futures, strict=True):
                    result = future.result()
                    if isinstance(result, ImageError):
                        bad[f"image {result.reason}"] += 1
                    else:
                        good.append(item)
                        images.append(result)
                yield good, images
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # left early: nobody wants the rest
