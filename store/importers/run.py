"""The loop of an import: records in, journal parts and pictures out. Killed, the same call goes on."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from ...core.errors import BadDataError
from ...core.ids import content_id
from ...core.progress import progress
from ...core.signals import StopSignal
from ..dedupe import refuse_other_labelers
from ..pairstore import PairStore
from ..runs import run
from .config import ImportConfig
from .formats import Source
from .part import Part
from .record import Bad


def import_pairs(config: ImportConfig, source: Source, store: PairStore) -> dict:
    """Keep every pair of a source that the store lacks. Ids follow from content, so nothing is kept twice.

    Returns:
        Counts: pairs (usable ones in the source), new_* by table, repeated (labels that differ from an earlier one of the
        same pair and labeler, which stays), left_out (pairs by reason), examples (the first of each reason).

    Raises:
        UsageError: where the labeler is one that a scorer made.
    """
    with store.session() as connection:
        refuse_other_labelers(connection, [source.labeler])
    key = content_id(config.source.encode()).hex[:16]
    with (
        store.stage_lock("import", key),
        StopSignal().listening() as stop,
        run(store, "import", config) as this,
    ):
        part = Part(store, source.labeler, this.run_id)
        try:
            _read(source, part, stop, store)
        finally:
            part.close()
            this.summary |= summary(source, part)
    return this.summary


def _read(source: Source, part: Part, stop: StopSignal, store: PairStore) -> None:
    with progress(source.n_rows or 0, "rows") as bar, _no_cycle_search():
        for record in source.records:
            if isinstance(record, Bad):
                part.leave_out(*record)
            else:
                part.add(record)
            bar.update()
            if part.full or stop.requested:
                part.write()
                gc.collect()
                stop.check(f"{part.counts['pairs']} pairs are in {store.path}")
        part.write()


@contextmanager
def _no_cycle_search() -> Iterator[None]:
    """Python looks for cycles among the records of a part again and again: a quarter of the time, and there are none."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def summary(source: Source, part: Part) -> dict:
    return {
        "format": source.format,
        "labeler": source.labeler,
        **part.counts,
        "left_out": dict(part.left_out),
        "examples": part.examples,
    }


def refuse_bad(summary: dict, max_unreadable: float) -> None:
    """Raise BadDataError where more of the pairs were left out than the caller allows."""
    n_bad = sum(summary["left_out"].values())
    n = summary["pairs"] + n_bad
    if n_bad > max_unreadable * n:
        raise BadDataError(
            f"{n_bad} of {n} pairs cannot be used, more than --max-unreadable {max_unreadable:g}: {'; '.join(summary['examples'])}"
        )
