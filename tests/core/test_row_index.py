"""Columns of ids, and where their rows are: equal to what the slow functions of one id give."""

from uuid import UUID

import numpy as np
import pytest
from prefloop.core.id_columns import IdColumn, as_keys, content_keys, distinct_keys, id_texts, key_bytes, with_affixes
from prefloop.core.ids import content_id
from prefloop.core.row_index import RowIndex
from prefloop.train.seeds import derived_seed, derived_seeds

IDS = [UUID(int=0), UUID(int=1 << 120), UUID(int=255), UUID("0f8fad5b-d9cb-469f-a165-70867728950e")]


def test_a_column_of_ids_gives_the_ids_back_even_those_that_end_in_zeros():
    column = IdColumn(as_keys(IDS))
    assert list(column) == [column[at] for at in range(4)] == list(column[:]) == IDS
    assert column[-1] == IDS[-1]


def test_keys_sort_as_ids_do():
    assert list(IdColumn(np.sort(as_keys(IDS[::-1])))) == sorted(IDS)


def test_distinct_keys_are_ascending_with_the_number_of_each_row():
    chance = np.random.default_rng(3)
    # few, so that some are alike, and some share their first half
    ids = [UUID(int=int(head) << 64 | int(tail)) for head, tail in chance.integers(0, 4, (60, 2))]
    distinct, numbers = distinct_keys(as_keys(ids))
    assert list(IdColumn(distinct)) == sorted(set(ids))
    assert list(IdColumn(distinct[numbers])) == ids
    assert [len(part) for part in distinct_keys(as_keys([]))] == [0, 0]


def test_hashes_and_texts_of_many_rows_are_those_of_one():
    keys = as_keys(IDS)
    assert [text.tobytes().decode() for text in id_texts(keys)] == [str(identity) for identity in IDS]
    rows = with_affixes(b"<", key_bytes(keys), b">!")
    assert list(IdColumn(content_keys(rows))) == [content_id(b"<" + identity.bytes + b">!") for identity in IDS]


def test_seeds_of_many_ids_are_those_of_one():
    assert derived_seeds(7, "crop", ids=as_keys(IDS)).tolist() == [derived_seed(7, "crop", one) for one in IDS]


def test_an_id_in_two_files_is_found_in_the_one_added_last():
    index = RowIndex()
    index.add("old", as_keys(IDS[:3]))
    index.add("new", as_keys(IDS[2:][::-1]))  # IDS[3], IDS[2]
    files, rows = index.find(as_keys([*IDS, UUID(int=9)]))
    assert [index.names[file] if file >= 0 else None for file in files] == ["old", "old", "new", "new", None]
    assert rows[:4].tolist() == [0, 1, 1, 0]
    index.remove("new")
    assert (index.find(as_keys(IDS))[0] >= 0).tolist() == [True, True, True, False]


def test_an_empty_index_finds_nothing():
    assert RowIndex().find(as_keys(IDS))[0].tolist() == [-1] * 4


def test_ids_that_share_their_first_half_are_told_apart():
    chance = np.random.default_rng(1)
    ids = [UUID(int=int(head) << 64 | int(tail)) for head, tail in chance.integers(0, 9, (60, 2))]
    index = RowIndex()
    index.add("first", as_keys(ids[:20]))
    assert (index.find(as_keys(ids[20:]))[0] >= 0).tolist() == [identity in ids[:20] for identity in ids[20:]]
    index.add("second", as_keys(ids[20:40]))  # merged into the first
    last = {identity: (at // 20, at % 20) for at, identity in enumerate(ids[:40])}
    for identity, file, row in zip(ids, *index.find(as_keys(ids)), strict=True):
        assert last.get(identity) == ((file, row) if file >= 0 else None)


def test_files_added_one_by_one_are_found_as_those_added_at_once():
    chance = np.random.default_rng(0)
    parts = [as_keys(UUID(int=int(number)) for number in chance.integers(0, 60, 20)) for _ in range(6)]
    index, at_once = RowIndex(), RowIndex()
    for number, part in enumerate(parts):
        index.add(str(number), part)
        assert (index.find(part)[0] == number).all()  # which sorts it into the others
        at_once.add(str(number), part)
    every = as_keys(UUID(int=number) for number in range(60))
    assert index.names == list("012345")
    for found, expected in zip(index.find(every), at_once.find(every), strict=True):
        known = at_once.find(every)[0] >= 0
        assert np.array_equal(found[known], expected[known])
    assert np.array_equal(index.find(every)[0], at_once.find(every)[0])
    index.add("0", parts[0])
    assert (index.find(parts[0])[0] == index.names.index("0")).all()


def test_a_file_added_to_a_sorted_index_does_not_sort_the_others_again(monkeypatch: pytest.MonkeyPatch):
    index, sorted_rows = RowIndex(), []
    argsort = np.argsort
    monkeypatch.setattr(
        np, "argsort", lambda keys, **options: sorted_rows.append(len(keys)) or argsort(keys, **options)
    )
    for number in range(4):
        index.add(str(number), as_keys([UUID(int=number), UUID(int=number + 9)]))
        index.find(as_keys(IDS[:2]))
    assert set(sorted_rows) == {2}  # of up to eight
