"""The loop of an import: records in, journal parts and images out. After a kill, the same call continues."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from ...core.errors import BadDataError
from ...core.ids import content_id
from ...core.progress import progress
from ...core.signals import StopSignal
from ...core.text import plural
from ..dedupe import refuse_other_labelers
from ..pairstore import PairStore
from ..runs import run
from .config import ImportConfig
from .formats import Source
from .part import Part
from .record import Excluded


def import_pairs(config: ImportConfig, source: Source, store: PairStore) -> dict:
    """Store every pair of a source that the store lacks, or every image of a source without labels. Ids follow from content, so nothing is stored twice.

    Returns:
        Counts: pairs (usable ones in the source), images (those of a source without labels), new_* by table, repeated (labels that
        differ from an earlier one of the same pair and labeler, which stays); labelers (of the labels that were read), excluded (pairs by reason), examples (the first of each reason).

    Raises:
        UsageError: if the labeler belongs to a scorer.
    """
    if source.labeler is not None:
        with store.session() as connection:
            refuse_other_labelers(connection, [source.labeler])
    key = content_id(config.source.encode()).hex[:16]
    with (
        store.stage_lock("import", key),
        StopSignal().listening() as stop,
        run(store, "import", config) as import_run,
    ):
        part = Part(store, source.labeler, import_run.run_id)
        try:
            _read(source, part, stop, store)
        finally:
            part.close()
            import_run.summary |= summary(source, part)
    return import_run.summary


def _read(source: Source, part: Part, stop: StopSignal, store: PairStore) -> None:
    with progress(source.n_rows or 0, "rows") as bar, _without_garbage_collection():
        for record in source.records:
            if isinstance(record, Excluded):
                part.exclude(*record)
            else:
                part.add(record)
            bar.update()
            if part.full or stop.requested:
                part.write()
                gc.collect()
                what = "images" if source.labeler is None else "pairs"
                stop.check(f"{part.counts[what]} {what} are in {store.path}")
        part.write()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Without it, Python searches the records of a part for reference cycles, a quarter of the time, and finds none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def summary(source: Source, part: Part) -> dict:
    return {
        "format": source.format,
        "labeler": source.labeler,
        "labelers": sorted(part.labelers),
        **part.counts,
        "excluded": dict(part.excluded),
        "examples": part.examples,
    }


def refuse_unreadable(summary: dict, max_unreadable: float) -> None:
    """Raise BadDataError if more pairs were excluded than the caller allows."""
    n_excluded = sum(summary["excluded"].values())
    n_usable = summary["pairs"] + summary.get("images", 0)
    n, what = n_usable + n_excluded, "pair" if summary["labeler"] else "image"
    if n_excluded > max_unreadable * n:
        raise BadDataError(
            f"{n_excluded} of {plural(n, what)} cannot be used, more than --max-unreadable {max_unreadable:g}: {'; '.join(summary['examples'])}"
        )
