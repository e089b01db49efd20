"""The cache of embeddings gives back what was put in, and nothing that was changed since."""

import errno
import os
import stat
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest
from prefloop.relabel.embedding_cache import EmbeddingCache
from prefloop.store import PrefloopError


def test_the_cache_gives_back_what_was_put_in_also_to_another_process(tmp_path: Path):
    ids, values = [uuid4() for _ in range(5)], np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    cache = EmbeddingCache(tmp_path)
    cache.add(ids[:3], values[:3])
    assert np.array_equal(cache.get(ids[:3][::-1]), values[:3][::-1])  # before it is on disk
    cache.flush()
    cache.add(ids[3:], values[3:])
    cache.flush()
    other = EmbeddingCache(tmp_path)
    assert np.array_equal(other.get(ids), values)
    assert uuid4() not in other
    assert UUID(int=0) not in other


def written(folder: Path, seed: int = 0) -> tuple[list[UUID], np.ndarray, Path]:
    """A part of the cache with six embeddings."""
    ids = [UUID(int=seed * 100 + number) for number in range(6)]
    values = np.random.default_rng(seed).normal(size=(6, 7)).astype(np.float32)
    cache = EmbeddingCache(folder)
    before = set(folder.glob("*"))
    cache.add(ids, values)
    cache.flush()
    (path,) = set(folder.glob("*")) - before
    return ids, values, path


def test_a_part_of_the_cache_that_was_cut_off_is_embedded_again_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (one, *_), _, path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    (tmp_path / "1-page.npy").write_bytes(b"<html>")
    assert one not in EmbeddingCache(tmp_path)
    assert list(tmp_path.glob("*.npy")) == []
    assert capsys.readouterr().err == f"{tmp_path}/1-page.npy fails its checksum; its embeddings are computed again\n"


def test_a_bit_that_flipped_anywhere_in_a_part_is_found(tmp_path: Path):
    ids, _, path = written(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        cache = EmbeddingCache(tmp_path)
        assert not any(one in cache for one in ids), place
        assert not path.exists()


def test_another_part_is_used_where_one_is_damaged(tmp_path: Path):
    ids, values, first = written(tmp_path)
    other_ids, other_values, _ = written(tmp_path, seed=1)
    cache = EmbeddingCache(tmp_path)
    cache.add(ids[:2], values[:2])
    cache.flush()
    first.write_bytes(first.read_bytes().replace(values[3].tobytes(), values[4].tobytes()))
    cache = EmbeddingCache(tmp_path)
    assert [one in cache for one in ids] == [True, True, False, False, False, False]
    assert np.array_equal(cache.get(ids[:2]), values[:2])
    assert np.array_equal(cache.get(other_ids), other_values)
    with pytest.raises(KeyError):
        cache.get(ids)


def test_a_part_gets_its_name_when_it_is_whole_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events = []
    fsync, replace_file = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("on disk", os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))

    def renamed(source: Path, target: Path) -> None:
        events.append(("renamed", str(source), os.stat(source).st_size))
        assert not target.exists()
        assert list(tmp_path.glob("*.npy")) == []
        replace_file(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    *_, path = written(tmp_path)
    (first, source, size), second = events
    assert (first, second) == ("on disk", ("renamed", source, size))
    assert size == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_part_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(PrefloopError, match="No space left on device"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_cache_are_readable_as_the_umask_says(tmp_path: Path):
    old = os.umask(0o027)
    try:
        *_, path = written(tmp_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
