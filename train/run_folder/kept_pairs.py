"""The pairs a run was begun with, kept in its folder: labels may change while it is interrupted. Imports no torch."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.files import write_atomic
from ...store import IntegrityError, PairStore, UsageError
from ..checkpoint import sha256
from ..config import TrainConfig
from ..pairs import Pairs, kept_pairs, kept_rows, select_pairs
from .mark import RUN, read_mark, write_mark

_PAIRS = "pairs.parquet"


def keep_pairs(output: Path, config: TrainConfig, selected: Pairs, used: Pairs) -> None:
    """Write the list of a run that begins.

    Args:
        selected: what the settings asked for.
        used: those of them whose images can be read.
    """
    (output / RUN).mkdir(parents=True, exist_ok=True)
    path = output / RUN / _PAIRS
    sink = pa.BufferOutputStream()
    pq.write_table(kept_rows(selected, used), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())
    write_mark(output, config=config.identity(), pairs=sha256(path))


def forget_pairs(output: Path) -> None:
    """Of a run that has no checkpoint: it begins with the labels there are now."""
    (output / RUN / _PAIRS).unlink(missing_ok=True)


def read_pairs(output: Path, config: TrainConfig, store: PairStore) -> Pairs | None:
    """The list that a run with these settings was begun with; None where there is none.

    Raises:
        IntegrityError: where it has changed since it was written.
    """
    rows = _rows(output, config)
    return None if rows is None else kept_pairs(rows, store.prompts_by_id(rows["prompt_id"]))


def has_pairs(output: Path, config: TrainConfig) -> bool:
    """Whether a run with these settings goes on with the pairs it was begun with."""
    mark = read_mark(output)
    return mark is not None and mark.get("config") == config.identity() and "pairs" in mark


def _rows(output: Path, config: TrainConfig) -> pa.Table | None:
    if not has_pairs(output, config):
        return None
    path = output / RUN / _PAIRS
    try:
        if sha256(path) == (read_mark(output) or {})["pairs"]:
            return pq.read_table(path)
    except (OSError, pa.ArrowInvalid):
        pass
    raise IntegrityError(f"{path} is missing or has changed since it was written; put it back, or name another folder")


def n_changed(output: Path, config: TrainConfig, store: PairStore) -> int:
    """How many of the labels that the settings ask for are new, gone or otherwise since the run began."""
    rows = _rows(output, config)
    if rows is None:
        return 0
    then = _choices(rows)
    try:
        now = select_pairs(store, replace(config, max_train_samples=None))
    except UsageError:  # all are undone
        return len(then)
    here = _choices(now.train.table) | _choices(now.validation.table)
    # of a sample it cannot be known which of the others are new
    asked = then if config.max_train_samples is not None else then.keys() | here.keys()
    return sum(then.get(key) != here.get(key) for key in asked)


def _choices(rows: pa.Table) -> dict[tuple, tuple]:
    key, choice = (
        zip(*(rows[name].to_pylist() for name in names), strict=True)
        for names in (("pair_id", "labeler"), ("chosen", "p_chosen"))
    )
    return dict(zip(key, choice, strict=True))
