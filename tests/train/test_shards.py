"""A cache's index: what starts take from it, and that no row comes from a damaged file."""

import os
import shutil
from pathlib import Path
from uuid import UUID

import pytest
import torch
from prefloop.store import PrefloopError
from prefloop.train.shards import INDEX
from prefloop.train.tensor_cache import TensorCache

IDS = [UUID(int=number) for number in range(1, 13)]
VALUES = torch.arange(12.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve rows in two files, old enough for the index to vouch for them."""
    monkeypatch.setattr("prefloop.train.shards.STABLE_AFTER", -1)
    cache = TensorCache(tmp_path / "latents")
    for part in (IDS[:5], IDS[5:]):
        cache.fill(part, lambda ids: (list(ids), {"mean": VALUES[[IDS.index(i) for i in ids]]}), "encoding", batch=4)
    return cache.folder


def flip_last_bit(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def test_a_start_with_an_index_parses_the_ids_of_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prefloop.train.shards.read_about", lambda path: pytest.fail(f"{path} was parsed"))
    cache = TensorCache(folder)
    assert cache.missing(IDS) == []
    assert torch.equal(cache.rows("mean", IDS[::-1]), VALUES.flip(0))


@pytest.mark.parametrize("content", [None, b"", b"not an index"])
def test_without_a_usable_index_the_files_are_read_and_it_is_written_again(folder: Path, content: bytes | None):
    whole = (folder / INDEX).read_bytes()
    (folder / INDEX).unlink()
    if content is not None:
        (folder / INDEX).write_bytes(content)
    assert TensorCache(folder).missing([*IDS, UUID(int=99)]) == [UUID(int=99)]
    assert len((folder / INDEX).read_bytes()) == len(whole)


def test_a_file_that_the_index_lists_and_that_is_gone_counts_as_missing(folder: Path):
    sorted(folder.glob("*.safetensors"))[0].unlink()
    assert len(TensorCache(folder).missing(IDS)) in (5, 7)


def test_damage_after_the_start_is_found_before_a_row_is_used(folder: Path):
    cache = TensorCache(folder)
    assert cache.missing(IDS) == []
    for path in folder.glob("*.safetensors"):
        flip_last_bit(path)
    with pytest.raises(PrefloopError, match="the same command computes it again"):
        cache.rows("mean", IDS)
    assert len(list(folder.glob("*.safetensors"))) == 1  # the damaged one that was met is removed


def test_a_cache_deleted_after_the_start_can_still_be_read(folder: Path):
    cache = TensorCache(folder)
    assert cache.missing(IDS) == []
    shutil.rmtree(folder)
    assert torch.equal(cache.rows("mean", IDS), VALUES)
