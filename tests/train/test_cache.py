"""Caches of training: what was flipped or cut is found and made again, and a signal loses no batch."""

import os
import random
import signal
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import torch
from PIL import Image
from prefloop.core.signals import StopSignal
from prefloop.store import Interrupted, PairStore, load_image
from prefloop.train import TrainConfig
from prefloop.train.cache import SHARD, Rows, TensorCache
from prefloop.train.monitor.validation import REFERENCE_FILE
from prefloop.train.stage import train
from prefloop.train.tensor_file import DamagedError, read_tensors, write_tensors
from safetensors.torch import load_file, save_file

IDS = [UUID(int=number) for number in range(1, 21)]
VALUES = torch.arange(20 * 6).reshape(20, 2, 3).half()


def rows_of(ids: Sequence[UUID]) -> Rows:
    return list(ids), {"mean": torch.stack([VALUES[IDS.index(one)] for one in ids])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of 20 rows in two files."""
    shards = TensorCache(tmp_path / "latents")
    shards.fill(IDS[:12], rows_of, "encoding", batch=4)
    shards.fill(IDS[12:], rows_of, "encoding", batch=4)
    return shards.folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_any_flipped_bit_of_a_cache_is_found_and_its_rows_are_made_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    path, other = files(folder)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0).randrange
    # of the header's length, of the header, of the tensors
    bits = [
        3,
        30,
        63,
        *(draw(64, 8 * header) for _ in range(40)),
        *(draw(8 * header, 8 * len(whole)) for _ in range(20)),
    ]
    for bit in bits:
        path.write_bytes(whole)
        flip(path, bit)
        capsys.readouterr()
        shards = TensorCache(folder)
        missing = shards.missing(IDS)
        assert len(missing) in (8, 12), bit  # those of the one file
        (warning,) = capsys.readouterr().err.splitlines()
        assert "damaged" in warning
        assert str(folder) in warning
        assert files(folder) == [other]
        shards.fill(missing, rows_of, "encoding", batch=4)
        assert torch.equal(shards.rows("mean", IDS), VALUES)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_cache_file_that_was_cut_is_made_again(folder: Path, kept: int):
    path, _ = files(folder)
    path.write_bytes(path.read_bytes()[:kept])
    shards = TensorCache(folder)
    shards.fill(shards.missing(IDS), rows_of, "encoding", batch=4)
    assert torch.equal(shards.rows("mean", IDS), VALUES)


def test_a_whole_cache_is_read_without_a_word(folder: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in files(folder)}
    capsys.readouterr()
    shards = TensorCache(folder)
    assert shards.missing(IDS) == []
    assert torch.equal(shards.rows("mean", IDS[::-1]), VALUES.flip(0))
    assert capsys.readouterr().err == ""
    assert {path: path.stat().st_mtime_ns for path in files(folder)} == before


def test_a_cache_file_of_before_checksums_is_made_again_and_foreign_files_stay(folder: Path):
    path, _ = files(folder)
    save_file({"mean": VALUES[:12]}, path, {"ids": str([str(one) for one in IDS[:12]]).replace("'", '"')})
    foreign = folder / "mine.safetensors"
    foreign.write_bytes(b"mine")
    shards = TensorCache(folder)
    assert len(shards.missing(IDS)) in (8, 12)
    shards.fill(shards.missing(IDS), rows_of, "encoding", batch=4)
    assert torch.equal(shards.rows("mean", IDS), VALUES)
    assert TensorCache(folder).missing(IDS) == []
    assert foreign.read_bytes() == b"mine"


def test_files_that_a_run_does_not_ask_for_are_left_as_they_are(folder: Path):
    for path in files(folder):
        flip(path, 8 * path.stat().st_size - 1)
    assert TensorCache(folder).missing([UUID(int=99)]) == [UUID(int=99)]
    assert len(files(folder)) == 2


def test_cache_files_have_the_mode_that_the_umask_leaves(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "x.safetensors", {"a": VALUES}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_a_file_of_tensors_gives_back_what_was_put_in_or_says_it_is_damaged(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": VALUES, "b": torch.tensor([1.5, float("nan")])}, {"draws": "7"})
    tensors, about = read_tensors(path)
    assert about == {"draws": "7"}
    assert torch.equal(tensors["a"], VALUES)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"draws":"7"', b'"draws":"8"'))  # what is said of the tensors counts too
    with pytest.raises(DamagedError):
        read_tensors(path)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none.safetensors")


def test_a_file_of_tensors_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, calls = tmp_path / "x.safetensors", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append((stat.S_ISDIR(os.fstat(number).st_mode), path.exists())), fsync(number))[1])  # fmt: skip
    monkeypatch.setattr(os, "replace", lambda *both: (calls.append("renamed"), replace(*both))[1])
    write_tensors(path, {"a": VALUES}, {})
    assert calls == [(False, False), "renamed", (True, True)]


def test_a_signal_while_encoding_ends_after_the_batch_and_keeps_what_was_encoded(tmp_path: Path):
    stop, batches = StopSignal(), []

    def encoded(ids: Sequence[UUID]) -> Rows:
        batches.append(len(ids))
        if len(batches) == 2:
            stop.number = 15
        return rows_of(ids)

    shards = TensorCache(tmp_path)
    with pytest.raises(Interrupted, match=r"6 of 20.*the same command goes on") as raised:
        shards.fill(IDS, encoded, "encoding images", batch=3, stop=stop)
    assert raised.value.exit_code == 143
    assert batches == [3, 3]
    again = TensorCache(tmp_path)
    assert again.missing(IDS) == IDS[6:]
    again.fill(IDS[6:], rows_of, "encoding images", batch=3, stop=StopSignal())
    assert torch.equal(again.rows("mean", IDS), VALUES)


def test_batches_are_those_of_an_undisturbed_run_after_an_interruption(tmp_path: Path):
    ids = [UUID(int=number) for number in range(2 * SHARD)]
    seen: list[list[UUID]] = []

    def encoded(batch: Sequence[UUID]) -> Rows:
        seen.append(list(batch))
        return list(batch), {"mean": torch.zeros(len(batch))}

    TensorCache(tmp_path / "whole").fill(ids, encoded, "encoding", batch=7)
    undisturbed, seen = seen, []
    TensorCache(tmp_path / "rest").fill(ids[7 * 7 :], encoded, "encoding", batch=7)
    assert seen == undisturbed[7:]


def test_the_references_errors_are_computed_again_though_the_run_has_left_its_reference_behind(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    config = replace(config, lr_scheduler="constant", reference_draws=1, validation_steps=2, max_train_steps=4)
    whole, cut = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    train(whole, labelled)
    train(replace(cut, max_train_steps=2), labelled)
    (training,) = (labelled.path / "cache").glob("reference-*/*.safetensors")
    flip(training, 8 * training.stat().st_size - 4)
    (tmp_path / "cut" / ".run" / REFERENCE_FILE).unlink()
    train(cut, labelled, resume=True)
    weights = [load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert (tmp_path / "whole" / "validation.csv").read_text() == (tmp_path / "cut" / "validation.csv").read_text()


def test_a_run_on_damaged_caches_is_that_on_whole_ones(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(config, max_train_steps=2, output="unet")
    whole, other = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "other"))
    train(whole, labelled)
    caches = sorted((labelled.path / "cache").iterdir())
    assert [folder.name.split("-")[0] for folder in caches] == ["latents", "prompt"]
    for folder in caches:
        for path in files(folder):
            flip(path, 8 * path.stat().st_size - 4)
    capsys.readouterr()
    train(other, labelled)
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert [str(folder) in line for folder, line in zip(caches, told, strict=True)] == [True, True]
    weights = [
        load_file(Path(one.output_dir) / "unet" / "diffusion_pytorch_model.safetensors") for one in (whole, other)
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_sigterm_while_pictures_are_encoded_ends_the_run_and_keeps_them(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    opened: list[Path] = []

    def opening(path: Path, image: UUID) -> Image.Image:
        opened.append(path)
        if len(opened) == 5:
            signal.raise_signal(signal.SIGTERM)
        return load_image(path, image)

    monkeypatch.setattr("prefloop.train.cache.load_image", opening)
    with pytest.raises(Interrupted, match="60 of 60 are kept; the same command goes on") as raised:
        train(config, labelled)
    assert raised.value.exit_code == 128 + signal.SIGTERM
    assert train(config, labelled)["steps"] == 3
    assert len(opened) == 60
