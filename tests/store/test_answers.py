"""The table of judges' answers is kept like every other."""

from pathlib import Path
from uuid import UUID

from content import fill
from prefloop.store import PairStore
from prefloop.store.check import check
from prefloop.store.maintenance.compact import compact
from prefloop.store.maintenance.merge import merge


def add_answer(store: PairStore, number: int) -> None:
    ((prompt, image, pair),) = store.rows("select prompt_id, image_a, pair_id from pairs limit 1")
    row = {"answer_id": UUID(int=number), "prompt_id": prompt, "image_id": image, "pair_id": pair, "value": 0.5}
    row |= {"judge": "vlm@1", "answer": "tie", "model": "m", "template": "pair", "template_hash": "1", "details": "{}"}
    store.append("answers", [row])


def test_answers_are_checked_compacted_and_rebuilt(store: PairStore):
    fill(store, 1)
    add_answer(store, 1)
    store.ingest()
    assert store.rows("select answer, value from answers") == [("tie", 0.5)]
    add_answer(store, 2)
    store.ingest()
    compact(store)
    assert check(PairStore.open(store.path)) == []
    assert store.rebuild() > 0
    assert store.rows("select count(*) from answers") == [(2,)]
    comments = store.rows("select comment from duckdb_columns() where table_name = 'answers' and column_name = 'model'")
    assert comments == [("As the endpoint named it.",)]


def test_answers_are_merged_once(store: PairStore, tmp_path: Path):
    fill(store, 1)
    other = PairStore.create(tmp_path / "other")
    fill(other, 1)
    add_answer(store, 1)
    store.ingest()
    assert merge(other, store)["answers"] == 1
    assert merge(other, store)["answers"] == 0
    assert other.rows("select count(*) from answers") == [(1,)]
