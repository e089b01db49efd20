"""Ask a judge behind an endpoint about many items at once; what it has answered is handed on every few seconds."""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from ...core.ids import canonical, content_id
from ...core.signals import StopSignal
from ...store import ImageError
from ..scorers.registry import identity
from .chat import BudgetSpent, Stopped
from .vlm import ChatJudge, Judgement

if TYPE_CHECKING:
    from PIL.Image import Image

HANDED_ON = 5.0
"""Seconds after which finished items are handed on, to be stored: a killed process loses no more than these."""
HOPELESS = 20
"""Items without an answer from which on asking ends early, if they are more than --max-unreadable allows."""
Item = TypeVar("Item")


def judged(
    judge: ChatJudge,
    items: Iterable[Item],
    load: "Callable[[Item], tuple[str, Sequence[Image], Mapping[str, Any] | None]]",
    *,
    batch_size: int,
    stop: StopSignal,
) -> Generator[list[tuple[Item, Judgement | ImageError]]]:
    """Finished items, some at a time, in the order in which they finish. After a signal or an error, no more are asked
    about, and those that are finished are handed on first.

    Args:
        load: prompt, images and tags of an item; called in the judge's threads.
        batch_size: hand on as soon as this many are finished.

    Raises:
        BudgetSpent: if the judge may send no more requests.
        PrefloopError: if the endpoint cannot be used.
    """
    concurrency = judge.endpoint.limits.concurrency
    waiting, exhausted = iter(items), False
    error: BaseException | None = None
    pending: dict[Future[Judgement], Item] = {}
    finished: list[tuple[Item, Judgement | ImageError]] = []
    handed_on = time.monotonic()
    judge.endpoint.restart()
    pool = ThreadPoolExecutor(concurrency)
    try:
        while pending or not (exhausted or error or stop.requested):
            while len(pending) < concurrency and not (exhausted or error or stop.requested):
                try:
                    item = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                pending[pool.submit(lambda item=item: judge.judge(*load(item)))] = item
            for future in wait(pending, timeout=0.2, return_when=FIRST_COMPLETED).done:
                item = pending.pop(future)
                try:
                    finished.append((item, future.result()))
                except ImageError as unreadable:
                    finished.append((item, unreadable))
                except Stopped:
                    pass
                except BudgetSpent as spent:  # what other threads have reserved is still asked
                    error = error or spent
                except BaseException as failure:
                    error = failure if error is None or isinstance(error, BudgetSpent) else error
                    judge.endpoint.stop()
            if stop.requested:
                judge.endpoint.stop()
            if finished and (len(finished) >= batch_size or time.monotonic() - handed_on > HANDED_ON or not pending):
                yield finished
                finished, handed_on = [], time.monotonic()
    finally:
        judge.endpoint.stop()
        pool.shutdown(cancel_futures=True)
    if error is not None:
        raise error


def hopeless(counts: Counter[str], n_items: int, max_unreadable: float) -> bool:
    """Whether more items lack an answer than the user allows of all, so that asking about the others cannot help."""
    return counts["without an answer"] >= HOPELESS and counts["without an answer"] > max_unreadable * n_items


def answer_rows(
    judge: ChatJudge, judgement: Judgement, *, prompt: UUID, images: Sequence[UUID], pair: UUID | None, run_id: UUID
) -> Iterator[dict[str, Any]]:
    """Rows of the table answers.

    Args:
        images: the item's, in the order in which the judge was given them.
    """
    key = identity(judge)
    for number, answer in enumerate(judgement.answers):
        about = [key, str(prompt), *map(str, images), number, str(run_id)]
        yield {
            "answer_id": content_id(canonical(about).encode()),
            "judge": key,
            "prompt_id": prompt,
            "image_id": images[answer.shown_first],
            "pair_id": pair,
            "answer": answer.text,
            "value": answer.value,
            "model": answer.model,
            "template": judge.template.name,
            "template_hash": judge.template.digest,
            "details": canonical(answer.details),
            "run_id": run_id,
        }
