"""LazyRows behave like the list of the same objects."""

from uuid import UUID

import pyarrow as pa
import pytest
from prefloop.store.lazy_rows import LazyRows

N = 10_000  # more than are made at once
IDS = [UUID(int=number) for number in range(N)]


def record(identity: bytes, text: str, number: int | None) -> tuple[UUID, str, int | None]:
    return UUID(bytes=identity), text, number


@pytest.fixture(scope="module")
def both() -> tuple[LazyRows, list]:
    numbers = [None if at % 3 == 0 else at for at in range(N)]
    halves = []
    for part in (slice(0, 4000), slice(4000, N)):  # a table in two pieces, as DuckDB gives them
        ids = pa.array([identity.bytes for identity in IDS[part]], pa.uuid())
        halves.append(pa.table({"id": ids, "text": [f"t{i.int}" for i in IDS[part]], "number": numbers[part]}))
    rows = [(identity, f"t{identity.int}", number) for identity, number in zip(IDS, numbers, strict=True)]
    return LazyRows(pa.concat_tables(halves), record), rows


def test_lazy_rows_behave_like_a_list(both: tuple[LazyRows, list]):
    records, rows = both
    assert len(records) == N
    assert list(records) == rows
    assert [records[at] for at in (0, 3999, 4000, -1, -N)] == [rows[at] for at in (0, 3999, 4000, -1, -N)]
    for cut in (
        slice(3990, 4010),
        slice(5, 5),
        slice(9990, 20_000),
        slice(None, None, 777),
        slice(20, 3, -2),
        slice(-5, None),
    ):
        assert list(records[cut]) == rows[cut], cut
    assert list(records[4000:][10:20]) == rows[4010:4020]
    assert list(records[:3] + records[-2:]) == rows[:3] + rows[-2:]
    assert list(records.select([7, 7, 9999, 0])) == [rows[7], rows[7], rows[9999], rows[0]]
    assert list(records.select(at for at in (1, 2))) == rows[1:3]
    assert records[1:3] == records.select([1, 2])
    assert records[1:3] != records[1:4]
    assert records[1:3] != records.select([2, 1])
    for at in (N, -N - 1):
        with pytest.raises(IndexError, match=f"of {N}"):
            records[at]


def test_lazy_rows_can_be_empty(both: tuple[LazyRows, list]):
    empty = both[0][:0]
    assert not empty
    assert list(empty) == list(empty.select([])) == []
    # as DuckDB gives no rows: columns of ids without a piece
    schema = pa.schema([("id", pa.uuid()), ("text", pa.string()), ("number", pa.int64())])
    for columns in ([pa.chunked_array([], kind) for kind in schema.types], schema.empty_table().columns):
        none = LazyRows(pa.table(columns, schema=schema), record)
        assert list(none) == []
        assert list(none + both[0][:1]) == list(both[0][:1] + none) == both[1][:1]
