"""Score images by what a judge behind an endpoint answers about each."""

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ...core.signals import StopSignal
from ...store import ImageError, PairStore, UsageError, load_image
from ...store.lazy_rows import LazyRows
from ..image_loader import Item
from ..scorers.calls import Tags, parse_tags
from ..scorers.registry import identity
from .pool import answer_rows, hopeless, judged
from .vlm import PointJudge

if TYPE_CHECKING:
    from PIL.Image import Image


def score_answers(
    store: PairStore,
    judge: PointJudge,
    items: LazyRows[Item],
    batch_size: int,
    counts: Counter[str],
    run_id: UUID,
    stop: StopSignal,
    max_unreadable: float,
) -> Generator[tuple[list[Item], NDArray[np.float32]]]:
    """Items with their scores, from a judge behind an endpoint; its answers go into the store first."""
    tags = tags_of(store, items) if judge.needs_tags else {}
    asked = items
    if judge.needs_tags:
        asked = [item for item in items if judge.questions(tags.get(item.prompt_id))]
        counts["images whose prompt has no questions"] += len(items) - len(asked)
        if not asked and not store.rows("select 1 from scores where scorer = ? limit 1", [identity(judge)]):
            raise UsageError(f"no prompt of {store.path} has questions for {judge.name}; {judge.questions_needed}")

    def load(item: Item) -> "tuple[str, list[Image], Mapping[str, Any] | None]":
        return item.prompt, [load_image(store.path / item.path, item.image_id)], tags.get(item.prompt_id)

    finished = judged(judge, asked, load, batch_size=batch_size, stop=stop)
    with closing(finished) as groups:
        for group in groups:
            batch, scores, answers = [], [], []
            for item, judgement in group:
                if isinstance(judgement, ImageError):
                    counts[f"image {judgement.reason}"] += 1
                    continue
                ids = {"prompt": item.prompt_id, "images": [item.image_id], "pair": None, "run_id": run_id}
                answers += answer_rows(judge, judgement, **ids)
                if judgement.value is None:
                    counts["without an answer"] += 1
                    continue
                batch.append(item)
                scores.append(judgement.value)
            store.append("answers", answers)
            yield batch, np.asarray(scores, np.float32)
            if hopeless(counts, len(asked), max_unreadable):
                break


def tags_of(store: PairStore, items: LazyRows[Item]) -> dict[UUID, Tags | None]:
    """The tags of the items' prompts, by the prompt's id."""
    texts = store.prompts_by_id(items.table["prompt_id"], "tags")
    return {UUID(bytes=prompt): parse_tags(text) for prompt, text in texts.items()}
