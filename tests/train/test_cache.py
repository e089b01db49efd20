"""Training caches: damaged files are detected and recomputed, and a signal loses no batch."""

import os
import random
import shutil
import signal
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import torch
from PIL import Image
from prefloop.core.signals import StopSignal
from prefloop.store import Interrupted, PairStore, load_image
from prefloop.train import TrainConfig
from prefloop.train.monitor.validation import REFERENCE_FILE
from prefloop.train.prepare import with_reference_errors
from prefloop.train.stage import train
from prefloop.train.tensor_cache import SHARD, Rows, TensorCache
from prefloop.train.tensor_file import DamagedError, read_tensors, write_tensors
from prefloop.train.trainer import Trainer
from safetensors.torch import load_file, save_file

IDS = [UUID(int=number) for number in range(1, 21)]
VALUES = torch.arange(20 * 6).reshape(20, 2, 3).half()


def rows_of(ids: Sequence[UUID]) -> Rows:
    return list(ids), {"mean": torch.stack([VALUES[IDS.index(identity)] for identity in ids])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of 20 rows in two files."""
    cache = TensorCache(tmp_path / "latents")
    cache.fill(IDS[:12], rows_of, "encoding", batch=4)
    cache.fill(IDS[12:], rows_of, "encoding", batch=4)
    return cache.folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_any_flipped_bit_of_a_cache_is_detected_and_its_rows_are_recomputed(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    path, other = files(folder)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    random_bit = random.Random(0).randrange
    # in the header's length, in the header, in the tensors
    bits = [
        3,
        30,
        63,
        *(random_bit(64, 8 * header) for _ in range(40)),
        *(random_bit(8 * header, 8 * len(whole)) for _ in range(20)),
    ]
    for bit in bits:
        path.write_bytes(whole)
        flip(path, bit)
        capsys.readouterr()
        cache = TensorCache(folder)
        missing = cache.missing(IDS)
        assert len(missing) in (8, 12), bit  # the rows of one file
        (warning,) = capsys.readouterr().err.splitlines()
        assert "damaged" in warning
        assert str(folder) in warning
        assert files(folder) == [other]
        cache.fill(missing, rows_of, "encoding", batch=4)
        assert torch.equal(cache.rows("mean", IDS), VALUES)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_cache_file_is_recomputed(folder: Path, kept: int):
    path, _ = files(folder)
    path.write_bytes(path.read_bytes()[:kept])
    cache = TensorCache(folder)
    cache.fill(cache.missing(IDS), rows_of, "encoding", batch=4)
    assert torch.equal(cache.rows("mean", IDS), VALUES)


def test_an_intact_cache_is_read_without_a_message(folder: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in files(folder)}
    capsys.readouterr()
    cache = TensorCache(folder)
    assert cache.missing(IDS) == []
    assert torch.equal(cache.rows("mean", IDS[::-1]), VALUES.flip(0))
    assert capsys.readouterr().err == ""
    assert {path: path.stat().st_mtime_ns for path in files(folder)} == before


def test_a_cache_file_without_a_checksum_is_recomputed_and_foreign_files_stay(folder: Path):
    path, _ = files(folder)
    save_file({"mean": VALUES[:12]}, path, {"ids": str([str(identity) for identity in IDS[:12]]).replace("'", '"')})
    foreign = folder / "mine.safetensors"
    foreign.write_bytes(b"mine")
    cache = TensorCache(folder)
    assert len(cache.missing(IDS)) in (8, 12)
    cache.fill(cache.missing(IDS), rows_of, "encoding", batch=4)
    assert torch.equal(cache.rows("mean", IDS), VALUES)
    assert TensorCache(folder).missing(IDS) == []
    assert foreign.read_bytes() == b"mine"


def test_files_that_a_run_does_not_need_are_not_touched(folder: Path):
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


def test_a_tensor_file_returns_what_was_written_or_says_it_is_damaged(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": VALUES, "b": torch.tensor([1.5, float("nan")])}, {"draws": "7"})
    tensors, about = read_tensors(path)
    assert about == {"draws": "7"}
    assert torch.equal(tensors["a"], VALUES)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"draws":"7"', b'"draws":"8"'))  # the description of the tensors counts too
    with pytest.raises(DamagedError):
        read_tensors(path)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none.safetensors")


def test_a_tensor_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, calls = tmp_path / "x.safetensors", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append((stat.S_ISDIR(os.fstat(number).st_mode), path.exists())), fsync(number))[1])  # fmt: skip
    monkeypatch.setattr(os, "replace", lambda *both: (calls.append("renamed"), replace(*both))[1])
    write_tensors(path, {"a": VALUES}, {})
    assert calls == [(False, False), "renamed", (True, True)]


def test_a_signal_while_encoding_takes_effect_after_the_batch_and_what_was_encoded_is_kept(tmp_path: Path):
    stop, batches = StopSignal(), []

    def encoded(ids: Sequence[UUID]) -> Rows:
        batches.append(len(ids))
        if len(batches) == 2:
            stop.number = 15
        return rows_of(ids)

    cache = TensorCache(tmp_path)
    with pytest.raises(Interrupted, match=r"6 of 20.*the same command continues") as raised:
        cache.fill(IDS, encoded, "encoding images", batch=3, stop=stop)
    assert raised.value.exit_code == 143
    assert batches == [3, 3]
    again = TensorCache(tmp_path)
    assert again.missing(IDS) == IDS[6:]
    again.fill(IDS[6:], rows_of, "encoding images", batch=3, stop=StopSignal())
    assert torch.equal(again.rows("mean", IDS), VALUES)


def test_a_resumed_cache_is_filled_in_the_same_batches_as_an_uninterrupted_one(tmp_path: Path):
    ids = [UUID(int=number) for number in range(2 * SHARD)]
    seen: list[list[UUID]] = []

    def encoded(batch: Sequence[UUID]) -> Rows:
        seen.append(list(batch))
        return list(batch), {"mean": torch.zeros(len(batch))}

    TensorCache(tmp_path / "whole").fill(ids, encoded, "encoding", batch=7)
    uninterrupted, seen = seen, []
    TensorCache(tmp_path / "rest").fill(ids[7 * 7 :], encoded, "encoding", batch=7)
    assert seen == uninterrupted[7:]


@pytest.mark.slow(reason="trains a model")
def test_reference_errors_are_recomputed_after_the_weights_have_moved_away_from_the_reference(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    config = replace(config, lr_scheduler="constant", reference_draws=1, validation_steps=2, max_train_steps=4)
    whole, resumed = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "resumed"))
    train(whole, labelled)
    train(replace(resumed, max_train_steps=2), labelled)
    (training,) = (labelled.path / "cache").glob("reference-*/*.safetensors")
    flip(training, 8 * training.stat().st_size - 4)
    (tmp_path / "resumed" / ".run" / REFERENCE_FILE).unlink()
    train(resumed, labelled, resume=True)
    weights = [
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("whole", "resumed")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert (tmp_path / "whole" / "validation.csv").read_text() == (tmp_path / "resumed" / "validation.csv").read_text()


def test_the_reference_errors_of_a_draw_do_not_depend_on_what_else_is_missing(
    labelled: PairStore, trainer: Callable[..., Trainer]
):
    made = trainer(lora_rank=2, reference_draws=2, train_batch_size=8, max_train_steps=6)
    errors = []
    for step in (0, 2, 4, 5):  # less than 48, 32, 16 and 8 draws, in batches of 8 of which the last is not whole
        for folder in (labelled.path / "cache").glob("reference-*"):
            shutil.rmtree(folder)
        data = with_reference_errors(made.data, made.denoiser, labelled, made.model, step)
        assert data.reference_errors is not None
        ids = [draw.draw_id for _, draw in data.cached_draws(step * 8, 48) if draw.draw_id is not None]
        errors.append(dict(zip(ids, data.reference_errors.rows("errors", ids), strict=True)))
    for later in errors[1:]:
        assert all(torch.equal(rows, errors[0][draw_id]) for draw_id, rows in later.items())


@pytest.mark.slow(reason="trains a model")
def test_a_run_with_damaged_caches_equals_one_with_intact_caches(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(config, max_train_steps=2, format="unet")
    whole, other = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "other"))
    train(whole, labelled)
    caches = sorted((labelled.path / "cache").iterdir())
    assert [folder.name.split("-")[0] for folder in caches] == ["latents", "prompt"]
    for folder in caches:
        for path in files(folder):
            flip(path, 8 * path.stat().st_size - 4)
    capsys.readouterr()
    train(other, labelled)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert [str(folder) in line for folder, line in zip(caches, warnings, strict=True)] == [True, True]
    weights = [
        load_file(Path(run.output_dir) / "unet" / "diffusion_pytorch_model.safetensors") for run in (whole, other)
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow(reason="trains a model")
def test_sigterm_while_images_are_encoded_ends_the_run_and_keeps_them(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    opened: list[Path] = []

    def opening(path: Path, image: UUID) -> Image.Image:
        opened.append(path)
        if len(opened) == 5:
            signal.raise_signal(signal.SIGTERM)
        return load_image(path, image)

    monkeypatch.setattr("prefloop.train.cache.load_image", opening)
    config = replace(config, max_train_steps=15)  # all 29 pairs
    # the first two are the images of the held-out pair
    with pytest.raises(Interrupted, match="58 of 58 are kept; the same command continues") as raised:
        train(config, labelled)
    assert raised.value.exit_code == 128 + signal.SIGTERM
    assert train(config, labelled)["steps"] == 15
    assert len(opened) == 60


@pytest.mark.slow(reason="trains a model")
def test_latents_of_version_0_1_are_used_and_its_prompt_embeddings_are_not(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    train(replace(config, max_train_steps=15), labelled)  # all 29 pairs
    latents, embeds = sorted((labelled.path / "cache").iterdir())
    for path in files(latents):
        assert load_file(path).keys() == {"mean", "std", "frame"}  # the names in 0.1
    old = labelled.path / "cache" / f"texts-{embeds.name.rsplit('-', 1)[1]}"  # its folder in 0.1
    shutil.move(embeds, old)
    for path in files(old):
        tensors, about = read_tensors(path)
        write_tensors(path, {"hidden": tensors["prompt_embeds"]}, about)
    before = {path: path.read_bytes() for path in files(old)}
    monkeypatch.setattr("prefloop.train.cache.load_image", lambda *_: pytest.fail("an image was decoded"))
    assert train(replace(config, max_train_steps=16), labelled, resume=True)["steps"] == 16
    assert {path: path.read_bytes() for path in files(old)} == before
