"""Pair images that are in the store."""

from dataclasses import asdict
from uuid import UUID

from ..core.ids import canonical, content_id
from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import PairStore, journal
from ..store.dedupe import new_rows
from ..store.runs import run
from .pair_candidates import Selection, select_images
from .pair_config import PairConfig
from .pairing import pair_rows

SOURCE = "pair"
ROWS = 65_536
"""Pairs that are written at once."""


def pair(config: PairConfig, store: PairStore) -> dict:
    """Pair the selected images of each prompt. Ids follow from content, so a pair that exists is not added again.

    Returns:
        Counts: images and prompts that were paired, unscored_images, eval_images and eval_prompts (left out), pairs (all of
        the strategy), new_pairs; scorer, as name@revision.

    Raises:
        UsageError: as `select_images` does.
    """
    key = content_id(canonical(asdict(config)).encode()).hex[:16]
    with (
        store.stage_lock("pair", key),
        StopSignal().listening() as stop,
    ):
        with stop.at_once():
            selection = select_images(store, config)
        with run(store, "pair", config) as pair_run:
            pair_run.summary |= selection.summary | {"pairs": 0, "new_pairs": 0}
            with progress(selection.summary["prompts"], "prompts") as bar:
                for rows, n_prompts in _batches(selection, config, pair_run.run_id):
                    pair_run.summary["new_pairs"] += store.append_new("pairs", rows.values())
                    pair_run.summary["pairs"] += len(rows)
                    bar.update(n_prompts)
                    stop.check(f"{pair_run.summary['pairs']} pairs are in {store.path}")
            store.try_ingest()
    return pair_run.summary


def plan(config: PairConfig, store: PairStore) -> dict:
    """What `pair` would return; nothing is written."""
    selection = select_images(store, config)
    summary = selection.summary | {"pairs": 0, "new_pairs": 0}
    for rows, _ in _batches(selection, config, None):
        with store.session() as connection:
            table = journal.as_table("pairs", rows.values())
            summary["new_pairs"] += new_rows(connection, "pairs", table, journal.key("pairs")).num_rows
        summary["pairs"] += len(rows)
    return summary


def _batches(selection: Selection, config: PairConfig, run_id: UUID | None):
    """Rows of `pairs` by pair id, with the number of prompts that they are of."""
    rows: dict[UUID, dict] = {}
    n_prompts = 0
    for prompt, candidates in selection.of_prompts():
        rows |= pair_rows(prompt, candidates, config.pairing, config.seed, SOURCE, run_id, config.pairs_per_prompt)
        n_prompts += 1
        if len(rows) >= ROWS:
            yield rows, n_prompts
            rows, n_prompts = {}, 0
    if n_prompts:
        yield rows, n_prompts
