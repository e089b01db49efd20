"""The pairs that a run began with, saved in its folder because labels may change while it is interrupted. Imports no torch."""

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...core.files import atomic_file
from ...store import IntegrityError, PairStore, UsageError
from ..checkpoint import newest_first, sha256
from ..config import TrainConfig
from ..distributed import follows_main
from ..pairs import Pairs, kept_pairs, kept_rows, select_pairs
from .marker import RUN_DIR, read_marker, write_marker
from .overwrite import alternatives

_PAIRS = "pairs.parquet"
_KEY, _CHOICE = ["pair_id", "labeler"], ["chosen", "p_chosen"]


@dataclass(frozen=True)
class Selection:
    """What a run's settings select: read before torch is loaded, since a million pairs take the query 1 GB for a second."""

    pairs: Pairs | None
    """Of a run that begins; another continues with those it began with, and further processes take the main one's."""
    n_changed: int = 0
    """Labels that were added, removed or changed since a run that continues began; counted by the main process, which tells."""


def select_for_run(config: TrainConfig, store: PairStore, *, overwrite: bool = False) -> Selection:
    """
    Raises:
        UsageError, IntegrityError: as `select_pairs` and `load_pairs`.
    """
    selection = _selection(config, store, overwrite)
    pa.default_memory_pool().release_unused()  # what a comparison has freed, 200 MB, would stay until training ends
    return selection


def _selection(config: TrainConfig, store: PairStore, overwrite: bool) -> Selection:
    output = Path(config.output_dir)
    # a run without a checkpoint begins again, with the labels of today
    rows = _rows(output, config) if newest_first(output) and not overwrite else None
    if rows is None:
        pairs = select_pairs(store, config)
        return Selection(None if follows_main() else pairs)
    return Selection(None, 0 if follows_main() else _count_changed(rows, config, store))


def save_pairs(output: Path, config: TrainConfig, selected: Pairs, used: Pairs) -> None:
    """Save the pairs of a run that begins.

    Args:
        selected: the pairs that the settings select.
        used: those of them whose images can be read.
    """
    (output / RUN_DIR).mkdir(parents=True, exist_ok=True)
    path = output / RUN_DIR / _PAIRS
    with atomic_file(path, make_parent=True) as file:
        pq.write_table(kept_rows(selected, used), file, compression="zstd")
    write_marker(output, config=config.identity(), pairs=sha256(path))


def delete_pairs(output: Path) -> None:
    """Forget the pairs of a run that has no checkpoint, so that it begins with today's labels."""
    (output / RUN_DIR / _PAIRS).unlink(missing_ok=True)


def load_pairs(output: Path, config: TrainConfig, store: PairStore) -> Pairs | None:
    """The pairs that a run with these settings began with; None if none were saved.

    Raises:
        IntegrityError: if the file has changed since it was written.
    """
    rows = _rows(output, config)
    return None if rows is None else kept_pairs(rows, store.prompts_by_id(rows["prompt_id"]))


def has_saved_pairs(output: Path, config: TrainConfig) -> bool:
    """Whether a run with these settings continues with the pairs it began with."""
    marker = read_marker(output)
    return marker is not None and config.continues(marker.get("config")) and "pairs" in marker


def _rows(output: Path, config: TrainConfig) -> pa.Table | None:
    if not has_saved_pairs(output, config):
        return None
    path = output / RUN_DIR / _PAIRS
    try:
        if sha256(path) == (read_marker(output) or {})["pairs"]:
            return pq.read_table(path)
    except (OSError, pa.ArrowInvalid):
        pass
    raise IntegrityError(
        f"{path} is missing or has changed since it was written; put it back, or give {alternatives(output)}"
    )


def _count_changed(rows: pa.Table, config: TrainConfig, store: PairStore) -> int:
    """How many of the labels that the settings select were added, removed or changed since the run began.

    Args:
        rows: of all pairs that it selected.
    """
    before = _choices(rows)
    try:
        selected = select_pairs(store, replace(config, max_train_samples=None))
    except UsageError:  # none is left
        return len(before)
    now = _choices(pa.concat_tables([selected.train.table, selected.validation.table]))
    # a sample does not tell which of the labels outside it are new
    how = "left outer" if config.max_train_samples is not None else "full outer"
    both = before.join(now, _KEY, join_type=how, left_suffix="_before", use_threads=False)
    alike = [
        pc.call_function(
            "coalesce", [pc.call_function("equal", [both[f"{name}_before"], both[name]]), pa.scalar(False)]
        )
        for name in _CHOICE
    ]
    return len(both) - pc.call_function("sum", [pc.call_function("and", alike)]).as_py()


def _choices(rows: pa.Table) -> pa.Table:
    return rows.select([*_KEY, *_CHOICE])
