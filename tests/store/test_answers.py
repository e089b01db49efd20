"""The table of judges' answers is created with its first rows: older stores of this schema version work as they are."""

from uuid import UUID

import pytest
from content import fill
from prefloop.store import IntegrityError, PairStore
from prefloop.store.check import check
from prefloop.store.maintenance.compact import compact
from prefloop.store.maintenance.merge import merge


def without_the_table(store: PairStore) -> PairStore:
    """The store as one that was made before the table existed."""
    with store.session(write=True) as connection:
        connection.execute("drop table answers")
    return PairStore.open(store.path)


def add_answer(store: PairStore, number: int) -> None:
    ((prompt, image, pair),) = store.rows("select prompt_id, image_a, pair_id from pairs limit 1")
    row = {"answer_id": UUID(int=number), "prompt_id": prompt, "image_id": image, "pair_id": pair, "value": 0.5}
    row |= {"judge": "vlm@1", "answer": "tie", "model": "m", "template": "pair", "template_hash": "1", "details": "{}"}
    store.append("answers", [row])


def test_a_store_without_the_table_is_read_checked_and_given_it_with_the_first_answer(store: PairStore):
    fill(store, 1)
    older = without_the_table(store)
    assert check(older) == []
    add_answer(older, 1)
    older.ingest()
    assert older.rows("select answer, value from answers") == [("tie", 0.5)]
    assert check(PairStore.open(older.path)) == []
    add_answer(older, 2)
    older.ingest()
    compact(older)
    assert older.rebuild() > 0
    assert older.rows("select count(*) from answers") == [(2,)]
    comments = older.rows("select comment from duckdb_columns() where table_name = 'answers' and column_name = 'model'")
    assert comments == [("As the endpoint named it.",)]


def test_answers_are_merged_between_stores_that_have_the_table_and_that_do_not(store: PairStore, tmp_path):
    fill(store, 1)
    other = PairStore.create(tmp_path / "other")
    fill(other, 1)
    other = without_the_table(other)
    assert "answers" not in merge(store, other)
    add_answer(store, 1)
    store.ingest()
    assert merge(other, store)["answers"] == 1
    assert merge(other, store)["answers"] == 0
    assert other.rows("select count(*) from answers") == [(1,)]


def test_a_table_that_had_rows_and_is_lost_is_noticed(store: PairStore):
    fill(store, 1)
    add_answer(store, 1)
    store.ingest()
    with pytest.raises(IntegrityError, match="answers has 0 rows, but the journal added 1"):
        without_the_table(store)
