"""Read, decode and preprocess images in threads while the model works on the batch before."""

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

N_THREADS = max(2, min(16, (os.cpu_count() or 2)))
BATCHES_AHEAD = 3


@dataclass(frozen=True)
class Item:
    """An image to be scored for a prompt."""

    prompt_id: UUID
    image_id: UUID
    prompt: str
    path: str
    """Relative to the store's folder."""


def image_batches(
    folder: Path,
    items: Sequence[Item],
    batch_size: int,
    unreadable: Counter[str],
    preprocess: "Callable[[Image], Any] | None" = None,
) -> Iterator[tuple[list[Item], list[Any]]]:
    """Batches of items with their images, or with what `preprocess` makes of them. Unreadable images are left out and
    counted by reason."""

    def load(item: Item) -> Any:
        try:
            image = load_image(folder / item.path, item.image_id)
            return preprocess(image) if preprocess else image
        except ImageError as error:
            return error

    with ThreadPoolExecutor(N_THREADS) as pool:
        batches = (list(items[at : at + batch_size]) for at in range(0, len(items), batch_size))
        ahead: deque[tuple[Sequence[Item], list[Future]]] = deque()
        try:
            while True:
                for batch in islice(batches, BATCHES_AHEAD - len(ahead)):
                    ahead.append((batch, [pool.submit(load, item) for item in batch]))
                if not ahead:
                    return
                batch, futures = ahead.popleft()
                readable, images = [], []
                for item, future in zip(batch, futures, strict=True):
                    result = future.result()
                    if isinstance(result, ImageError):
                        unreadable[f"image {result.reason}"] += 1
                    else:
                        readable.append(item)
                        images.append(result)
                yield readable, images
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # if left early, the remaining batches are not needed
