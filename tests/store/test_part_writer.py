"""Rows that come in small batches become few parts, and none is lost by an error."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefloop.store import PairStore
from prefloop.store.journal import as_table
from prefloop.store.part_writer import PartWriter


def scores(first: int, n: int) -> pa.Table:
    return as_table("scores", [{"scorer": f"s@{row}", "score": row} for row in range(first, first + n)])


def parts(store: PairStore) -> list[list[float]]:
    """The scores of each part."""
    return [pq.read_table(path)["score"].to_pylist() for path in sorted(store.journal.iterdir())]


def test_batches_of_2_rows_become_parts_of_at_least_5(store: PairStore):
    with PartWriter(store, "scores", 5) as writer:
        for first in range(0, 14, 2):
            writer.add(scores(first, 2))
    # 3 batches of 2 are the first to have 5 rows; the block's end writes the last batch
    assert parts(store) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13]]


def test_rows_whose_time_is_over_do_not_wait_for_others(store: PairStore):
    with PartWriter(store, "scores", 5, seconds=0.0) as writer:
        writer.add(scores(0, 1))
        assert parts(store) == [[0]]
        writer.add(scores(1, 1))
        assert parts(store) == [[0], [1]]


def test_an_error_appends_what_waits(store: PairStore):
    def interrupted() -> None:
        with PartWriter(store, "scores") as writer:
            writer.add(scores(0, 3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert parts(store) == [[0, 1, 2]]
