"""The embedding cache returns what was added, and nothing that has changed since."""

import errno
import hashlib
import os
import stat
import tracemalloc
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest
from prefloop.core.id_columns import as_keys
from prefloop.relabel import embedding_cache
from prefloop.relabel.embedding_cache import EmbeddingCache
from prefloop.store import PrefloopError, UsageError


def test_the_cache_returns_what_was_added_also_when_reopened(tmp_path: Path):
    ids, values = [uuid4() for _ in range(5)], np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    cache = EmbeddingCache(tmp_path)
    cache.add(ids[:3], values[:3])
    assert np.array_equal(cache.get(ids[:3][::-1]), values[:3][::-1])  # before it is written
    cache.flush()
    cache.add(ids[3:], values[3:])
    cache.flush()
    reopened = EmbeddingCache(tmp_path)
    assert np.array_equal(reopened.get(ids), values)
    assert uuid4() not in reopened
    assert UUID(int=0) not in reopened


def test_embeddings_that_are_not_finite_are_not_kept_for_the_next_run(tmp_path: Path):
    ids, values = [uuid4() for _ in range(3)], np.ones((3, 2), np.float32)
    values[1, 1], values[2] = np.nan, np.inf
    cache = EmbeddingCache(tmp_path)
    cache.add(ids, values)
    for _ in range(2):  # before it is written, and after
        assert cache.contains(as_keys(ids)).all()
        assert np.array_equal(cache.get(ids), values, equal_nan=True)
        cache.flush()
    assert EmbeddingCache(tmp_path).contains(as_keys(ids)).tolist() == [True, False, False]


@pytest.mark.parametrize("reopened", [False, True])
def test_embeddings_of_another_length_are_refused_and_the_others_stay(tmp_path: Path, reopened: bool):
    ids, _, _ = write_part(tmp_path)
    before = EmbeddingCache(tmp_path).get(ids)
    cache = EmbeddingCache(tmp_path)
    if not reopened:
        cache.add([UUID(int=10)], before[:1])
    with pytest.raises(UsageError, match="has embeddings of 7 numbers by this backbone, and got one of 8"):
        cache.add([UUID(int=11)], np.ones((1, 8), np.float32))
    cache.flush()
    assert np.array_equal(EmbeddingCache(tmp_path).get(ids), before)


def write_part(folder: Path, seed: int = 0) -> tuple[list[UUID], np.ndarray, Path]:
    """Add a part with six embeddings to the cache."""
    ids = [UUID(int=seed * 100 + number) for number in range(6)]
    values = np.random.default_rng(seed).normal(size=(6, 7)).astype(np.float32)
    cache = EmbeddingCache(folder)
    before = set(folder.glob("*"))
    cache.add(ids, values)
    cache.flush()
    (path,) = set(folder.glob("*")) - before
    return ids, values, path


def test_a_truncated_part_is_removed_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ids, _, path = write_part(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    (tmp_path / "1-page.npy").write_bytes(b"<html>")
    assert ids[0] not in EmbeddingCache(tmp_path)
    assert list(tmp_path.glob("*.npy")) == []
    assert capsys.readouterr().err == f"{tmp_path}/1-page.npy fails its checksum; its embeddings are computed again\n"


def test_a_flipped_bit_anywhere_in_a_part_is_detected(tmp_path: Path):
    ids, _, path = write_part(tmp_path)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        cache = EmbeddingCache(tmp_path)
        assert not any(image in cache for image in ids), at
        assert not path.exists()


def test_another_part_is_used_if_one_is_damaged(tmp_path: Path):
    ids, values, first = write_part(tmp_path)
    other_ids, other_values, _ = write_part(tmp_path, seed=1)
    cache = EmbeddingCache(tmp_path)
    cache.add(ids[:2], values[:2])
    cache.flush()
    first.write_bytes(first.read_bytes().replace(values[3].tobytes(), values[4].tobytes()))
    cache = EmbeddingCache(tmp_path)
    assert [image in cache for image in ids] == [True, True, False, False, False, False]
    assert np.array_equal(cache.get(ids[:2]), values[:2])
    assert np.array_equal(cache.get(other_ids), other_values)
    with pytest.raises(KeyError):
        cache.get(ids)


def test_a_part_gets_its_name_once_it_is_completely_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    *_, path = write_part(tmp_path)
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
        write_part(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_files_follow_the_umask(tmp_path: Path):
    old = os.umask(0o027)
    try:
        *_, path = write_part(tmp_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_opening_a_cache_takes_60_bytes_an_id_and_finding_them_no_object(tmp_path: Path):
    ids = [UUID(int=number << 64) for number in range(40_000)]
    cache = EmbeddingCache(tmp_path)
    for at in range(0, len(ids), 4096):
        cache.add(ids[at : at + 4096], np.zeros((len(ids[at : at + 4096]), 2), np.float32))
    cache.flush()
    keys = as_keys(ids)
    del cache
    tracemalloc.start()
    opened = EmbeddingCache(tmp_path)
    after_start, _ = tracemalloc.get_traced_memory()
    assert opened.contains(keys).all()
    after_finding, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # an id is 16 bytes twice, in its file's order and sorted, with 4 bytes each of file and row; a dict took over 200
    assert after_start < 40_000 * 20
    assert after_finding < 40_000 * 60


def test_a_start_reads_the_ids_alone(tmp_path: Path):
    ids, _, path = write_part(tmp_path)
    path.write_bytes(path.read_bytes()[: 128 + 16 * len(ids)])  # NumPy's header takes 128 bytes
    cache = EmbeddingCache(tmp_path)
    assert path.exists()
    assert not cache.contains(as_keys(ids)).any()
    assert not path.exists()


def test_few_parts_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding_cache, "N_OPEN", 2)
    parts = [write_part(tmp_path, seed) for seed in range(5)]
    cache = EmbeddingCache(tmp_path)
    for _ in range(2):
        embeddings = cache.get([ids[3] for ids, *_ in parts])
        assert np.array_equal(embeddings, [values[3] for _, values, _ in parts])
    maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line}
    assert len(maps) == 2


def test_parts_of_the_first_version_are_read(tmp_path: Path):
    ids, values = [uuid4() for _ in range(3)], np.arange(6, dtype=np.float32).reshape(3, 2)
    rows = np.empty(3, [("id", "V16"), ("embedding", "<f4", (2,))])
    rows["id"], rows["embedding"] = np.frombuffer(b"".join(identity.bytes for identity in ids), "V16"), values
    path = tmp_path / "1-1.npy"
    np.save(path, rows)
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())
    cache = EmbeddingCache(tmp_path)
    assert np.array_equal(cache.get(ids[::-1]), values[::-1])
    assert path.exists()
