"""`store check` compares one moment: what other processes write meanwhile is not damage."""

import os
import time
from pathlib import Path

import pytest
from content import add_image, add_label, add_pair, add_prompt, fill
from prefloop.store import PairStore, journal
from prefloop.store import check as check_module
from prefloop.store.check import check
from prefloop.store.ingest import ingest_parts
from prefloop.store.maintenance.compact import compact


def test_parts_that_are_not_ingested_yet_are_not_damage(store: PairStore):
    fill(store)
    add_prompt(store, "just appended")
    assert check(store) == []


def test_a_row_whose_reference_waits_in_the_journal_is_not_damage(store: PairStore):
    prompt = add_prompt(store, "one")
    add_pair(store, prompt, add_image(store, (1, 2, 3)), add_image(store, (4, 5, 6)))
    found = journal.parts(store.journal)
    pairs = {name: table for name, table in found.items() if table == "pairs"}
    with store.session(write=True) as connection:  # whoever listed the folder did not see the other parts yet
        ingest_parts(connection, store.journal, pairs)
    assert check(store) == []
    for name in found:
        if "-images-" in name:
            (store.journal / name).unlink()
    assert [(p.what, p.where) for p in check(store)] == [
        ("missing reference", "pairs.image_a → images"),
        ("missing reference", "pairs.image_b → images"),
    ]


def test_a_journal_that_is_compacted_meanwhile_is_not_damage(store: PairStore, monkeypatch: pytest.MonkeyPatch):
    fill(store)
    make = check_module.build_database

    def compacted_before(folder: Path, found: dict[str, str]) -> object:
        compact(store)
        return make(folder, found)

    monkeypatch.setattr(check_module, "build_database", compacted_before)
    assert check(store) == []


def _write(store: PairStore, until: float) -> None:
    """What a stage, a person and upkeep do to a store."""
    number = 0
    while time.monotonic() < until:
        number += 1
        prompt = add_prompt(store, f"new {number}")
        pair = add_pair(store, prompt, add_image(store, (number % 256, 7, 0)), add_image(store, (0, 7, number % 256)))
        add_label(store, pair, "me", "a")
        if number % 3 == 0:
            store.ingest()
        if number % 10 == 0:
            compact(store)


@pytest.mark.slow(reason="writes and reads whole stores")
def test_checks_beside_a_writer_find_nothing(store: PairStore):
    fill(store, n_prompts=1)
    store.append("labelers", [{"labeler": "me", "kind": "human", "config": "{}"}])
    store.ingest()
    until = time.monotonic() + 2.5
    if (child := os.fork()) == 0:
        try:
            _write(store, until)
        finally:
            os._exit(0)
    n = 0
    while time.monotonic() < until:
        assert check(PairStore.open(store.path)) == []
        n += 1
    os.waitpid(child, 0)
    assert n >= 2
