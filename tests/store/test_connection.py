"""All sessions of a process share DuckDB instances; no session sees or blocks another."""

import os
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa
import pytest
from content import add_prompt, fill
from prefloop.store import PairStore
from prefloop.store.check import check


def test_a_session_sees_nothing_of_the_previous_one(store: PairStore):
    with store.session() as connection:
        connection.register("rows", pa.table({"x": [1]}))
        connection.execute("create temp table mine as select 1 as x")
    for gone in ("rows", "mine"):
        with store.session() as connection, pytest.raises(duckdb.CatalogException):
            connection.execute(f"select * from {gone}")
    with store.session() as connection:
        names = connection.execute("select database_name from duckdb_databases() where not internal").fetchall()
        assert set(names) == {("memory",), ("store",)}


def test_ids_are_strings_again_after_a_query_with_ids(store: PairStore):
    fill(store, 1)
    query = "select pair_id from pairs"
    assert store.sql(query, as_ids=True).schema.field(0).type == pa.uuid()
    assert store.sql(query).schema.field(0).type == pa.string()


def test_threads_read_concurrently_and_see_what_was_written(store: PairStore):
    fill(store, 4)

    def count(_: int) -> list[tuple]:
        return store.rows("select count(*), count(distinct hash(x)) from pairs, range(20000) as r(x)")

    with ThreadPoolExecutor(4) as pool:
        assert set(map(tuple, pool.map(count, range(12)))) == {((80_000, 20_000),)}
    add_prompt(store, "one more")
    store.ingest()
    assert store.rows("select count(*) from prompts") == [(5,)]
    assert check(store) == []


def test_a_failed_query_leaves_the_database_free(store: PairStore):
    with pytest.raises(duckdb.CatalogException):
        store.rows("select * from nothing")

    def interrupted() -> None:
        with store.session(write=True) as connection:
            connection.execute("begin")
            connection.execute("delete from meta")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert store.rows("select count(*) from meta") == [(1,)]
    with duckdb.connect(store.database) as outside:  # in this process too, nobody holds it
        assert outside.execute("select count(*) from meta").fetchall() == [(1,)]


def test_a_forked_process_reads_and_writes(store: PairStore):
    fill(store, 2)  # the parent's engine is there
    child = os.fork()
    if child == 0:
        add_prompt(store, "of the child")
        store.ingest()
        os._exit(0 if store.rows("select count(*) from prompts") == [(3,)] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.rows("select count(*) from prompts") == [(3,)]
