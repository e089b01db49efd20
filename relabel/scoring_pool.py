"""Scoring by several workers, seen from the process that stores the scores."""

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UsageError
from ..core.executor import Pool, pool_of
from ..core.signals import StopSignal
from ..store.lazy_rows import LazyRows
from .embedding_cache import EmbeddingCache
from .image_loader import Item
from .judges.vlm import ChatJudge
from .remote.scorer import HTTPScorer
from .scorer_worker import ScorerWorker, ScoringJob, ScoringResult
from .scorers.precision import AUTO
from .scorers.registry import Scorer, dtype_of, identity, is_object

Workers = Pool[ScorerWorker]


def scorer_workers(
    n: int, name: str, scorer: Scorer, checkpoints: Mapping[str, str], device: str | None, dtype: str = AUTO
) -> AbstractContextManager[Workers | None]:
    """The workers of a scorer, which start with the first batch; None if this process is to score.

    Args:
        name, checkpoints, device, dtype: what `load_scorers` made the scorer from.

    Raises:
        UsageError: if the scorer is an object of this process.
    """
    if n == 1:
        return nullcontext()
    if is_object(name):
        raise UsageError(
            f"{name} is an object of this process; score with workers=1, or name its class as module:Class"
        )
    if isinstance(scorer, ChatJudge | HTTPScorer):
        print(f"{name} is asked by this process alone, without workers", file=sys.stderr)
        return nullcontext()
    own = {key: path for key, path in checkpoints.items() if key in ("", name)}
    return pool_of(n, partial(ScorerWorker, name, own, (device, dtype_of(scorer, dtype)), identity(scorer)), device)


def pooled_scores(
    workers: Workers,
    folder: Path,
    items: LazyRows[Item],
    tags: Mapping[bytes, str],
    batch_size: int,
    counts: Counter[str],
    stop: StopSignal,
) -> Generator[tuple[list[Item], NDArray[np.float32]]]:
    """Items with their scores."""
    if not items:
        return
    prompts = list({item.prompt for item in items})
    ((_, n_truncated),) = workers.done(ScorerWorker.n_truncated, [prompts], stop)
    counts["truncated prompts"] += n_truncated
    batches = (list(items[start : start + batch_size]) for start in range(0, len(items), batch_size))
    jobs = (
        ScoringJob(folder.resolve(), batch, tags=[tags.get(item.prompt_id.bytes) for item in batch] if tags else [])
        for batch in batches
    )
    for _, result in _results(workers, ScorerWorker.scores, jobs, counts, stop):
        if result.readable:
            yield result.readable, result.values


def pooled_embeddings(
    workers: Workers,
    folder: Path,
    items: LazyRows[Item],
    items_of: Callable[[Sequence[UUID]], list[Item]],
    images: EmbeddingCache,
    prompts: EmbeddingCache | None,
    batch_size: int,
    counts: Counter[str],
    stop: StopSignal,
) -> Iterator[list[UUID]]:
    """Embed images, and the prompts that they are scored for. Yields images whose embeddings are in the caches, with those of
    their prompts.

    Args:
        items: one of each image.
        items_of: all items of images.
        images, prompts: the caches; None for prompts that are not needed.
    """
    handed_out: set[UUID] = set()
    ids_of: dict[UUID, list[UUID]] = {}
    """First image of a batch → ids of the prompts in its job."""

    def jobs() -> Iterator[ScoringJob]:
        # the batches of images and of prompts are those of a single process, so that rounding is the same
        for start in range(0, len(items), batch_size):
            batch, new = list(items[start : start + batch_size]), {}
            if prompts is not None:
                every = items_of([item.image_id for item in batch])
                known = (i.prompt_id in handed_out or i.prompt_id in prompts for i in every)
                new = {i.prompt_id: i.prompt for i, is_known in zip(every, known, strict=True) if not is_known}
            handed_out.update(new)
            ids_of[batch[0].image_id] = list(new)
            texts = list(new.values())
            chunks = [texts[at : at + batch_size] for at in range(0, len(texts), batch_size)]
            yield ScoringJob(folder.resolve(), batch, prompts=chunks)

    waiting: list[list[UUID]] = []
    for job, result in _results(workers, ScorerWorker.embeddings, jobs(), counts, stop):
        counts["truncated prompts"] += result.n_truncated
        if result.readable:
            waiting.append([item.image_id for item in result.readable])
            images.add(waiting[-1], result.values)
        if prompts is not None and result.prompts is not None:
            prompts.add(ids_of.pop(job.items[0].image_id), result.prompts)
        # another worker may still have a prompt
        ready = [ids for ids in waiting if prompts is None or all(i.prompt_id in prompts for i in items_of(ids))]
        waiting = [ids for ids in waiting if ids not in ready]
        yield from ready


def pooled_prompts(
    workers: Workers, new: Sequence[tuple[UUID, str]], batch_size: int, counts: Counter[str], stop: StopSignal
) -> Iterator[tuple[list[UUID], NDArray[np.float32]]]:
    """Ids and texts of prompts → ids and embeddings, in batches."""
    ids = {texts[0]: list(chunk) for chunk, texts in _chunks(new, batch_size)}
    jobs = [list(texts) for _, texts in _chunks(new, batch_size)]
    for texts, (embeddings, n_truncated) in workers.done(ScorerWorker.prompt_embeddings, jobs, stop) if jobs else ():
        counts["truncated prompts"] += n_truncated
        yield ids[texts[0]], embeddings


def _chunks(new: Sequence[tuple[UUID, str]], size: int) -> Iterator[tuple[tuple[UUID, ...], tuple[str, ...]]]:
    for start in range(0, len(new), size):
        ids, texts = zip(*new[start : start + size], strict=True)
        yield ids, texts


def _results(
    workers: Workers,
    function: Callable[[ScorerWorker, ScoringJob], ScoringResult | None],
    jobs: Iterable[ScoringJob],
    counts: Counter[str],
    stop: StopSignal,
) -> Iterator[tuple[ScoringJob, ScoringResult]]:
    """Each job with its result. Workers read the images from the store's folder; once one does not see it, their bytes go
    with the jobs."""
    unseen: list[ScoringJob] = []
    handed_out = (job.with_data() if unseen else job for job in jobs)
    for job, result in workers.done(function, handed_out, stop):
        if result is None:
            unseen.append(job)
        else:
            counts.update(result.unreadable)
            yield job, result
    if unseen:
        again = (job.with_data() for job in unseen)
        for job, result in workers.done(function, again, stop):
            assert result is not None, "a worker looks for files only if it has no bytes"
            counts.update(result.unreadable)
            yield job, result
