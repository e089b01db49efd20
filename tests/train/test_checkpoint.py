"""Checkpoints are atomic."""

import os
import shutil
from pathlib import Path
from typing import Any

import content
import pytest
import torch
from prefloop.store import IntegrityError, PrefloopError
from prefloop.train.checkpoint import MANIFEST, latest_checkpoint, read_manifest, save_checkpoint
from prefloop.train.run_folder.publish import publish
from safetensors.torch import save_file


def save(output: Path, step: int, keep: int = 5) -> Path:
    def write(folder: Path) -> None:
        (folder / "unet").mkdir()
        (folder / "unet" / "weights").write_bytes(bytes([step]) * 100)

    return save_checkpoint(output, step, {"config": "x"}, write, keep)


def test_the_newest_checkpoint_is_found_with_its_manifest(tmp_path: Path):
    save(tmp_path, 9)
    newest = save(tmp_path, 10)  # 10 is newer than 9, though it sorts before it as text
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest[0] == newest
    assert latest[1]["step"] == 10


@pytest.mark.parametrize("damage", ["bit", "short", "gone", "manifest"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, damage: str, capsys):
    save(tmp_path, 1)
    weights = save(tmp_path, 2) / "unet" / "weights"
    if damage == "bit":
        weights.write_bytes(b"\x03" + weights.read_bytes()[1:])
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "gone":
        weights.unlink()
    else:
        (tmp_path / "checkpoint-2" / MANIFEST).write_text("{")
    with pytest.raises(IntegrityError):
        read_manifest(tmp_path / "checkpoint-2")
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest[1]["step"] == 1
    assert "checkpoint-2" in capsys.readouterr().err


def test_a_run_killed_while_writing_leaves_no_checkpoint(tmp_path: Path):
    def killed(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 3, {}, killed, 2)
    assert latest_checkpoint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []  # unfinished folders are removed


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """File operations in order: (fsync, replace or remove; file name)."""
    operations: list[tuple[str, str]] = []
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def seen_fsync(descriptor: int) -> None:
        operations.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def seen_replace(source: Path, target: Path) -> None:
        operations.append(("replace", Path(target).name))
        replace(source, target)

    def seen_rmtree(path: Path, *arguments: Any, **more: Any) -> None:
        if Path(path).exists():
            operations.append(("remove", Path(path).name))
        rmtree(path, *arguments, **more)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    monkeypatch.setattr(shutil, "rmtree", seen_rmtree)
    return operations


def test_a_checkpoint_gets_its_name_once_it_is_on_disk_and_only_then_old_ones_are_removed(
    tmp_path: Path, calls: list[tuple[str, str]]
):
    save(tmp_path, 1, keep=1)
    calls.clear()
    save(tmp_path, 2, keep=1)
    named = calls.index(("replace", "checkpoint-2"))
    before, after = calls[:named], calls[named + 1 :]
    assert before.index(("fsync", "weights")) < before.index(("fsync", MANIFEST))
    # the folders of the manifest and of the weights too
    assert set(before) == {("fsync", name) for name in ("weights", MANIFEST, "unet", ".checkpoint-2.tmp")}
    assert after == [("fsync", tmp_path.name), ("remove", "checkpoint-1")]


def test_the_last_file_of_a_result_is_written_once_the_others_are_on_disk(tmp_path: Path, calls: list[tuple[str, str]]):
    def write(text: str) -> None:
        with publish(tmp_path) as folder:
            (folder / "unet").mkdir()
            for name in ("unet/weights", "aaa", "prefloop.json", "zzz"):
                (folder / name).write_text(text)

    write("1")
    calls.clear()
    write("2")
    moved = [name for call, name in calls if call == "replace" and name != "result.json"]
    assert moved == ["aaa", "weights", "zzz", "prefloop.json"]
    last = calls.index(("replace", "prefloop.json"))
    for name in ("aaa", "weights", "zzz", "prefloop.json"):
        assert calls.index(("fsync", name)) < calls.index(("replace", name))
    # their folders, after they are moved
    assert {("fsync", "unet"), ("fsync", tmp_path.name)} <= set(calls[calls.index(("replace", "zzz")) : last])
    assert calls[last + 1] == ("fsync", tmp_path.name)


@pytest.mark.parametrize("call", ["unlink", "replace"])
def test_a_half_replaced_result_does_not_count_as_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    def write(text: str) -> None:
        with publish(tmp_path) as folder:
            for name in ("weights", "prefloop.json"):
                (folder / name).write_text(text)

    write("1")
    whole = getattr(os, call)

    def killed(*paths: Path, **more: Any) -> None:
        if Path(paths[-1]).name == "weights":
            raise KeyboardInterrupt
        whole(*paths, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, killed)
        with pytest.raises(KeyboardInterrupt):
            write("2")
    assert not (tmp_path / "prefloop.json").exists()
    write("2")
    assert (tmp_path / "weights").read_text() == "2"


def test_files_have_the_mode_of_the_umask(tmp_path: Path):
    def write(folder: Path) -> None:
        save_file({"weight": torch.zeros(3)}, folder / "weights.safetensors")  # safetensors makes it 0600

    before = os.umask(0o027)
    try:
        checkpoint = save_checkpoint(tmp_path, 1, {}, write, 2)
        with publish(tmp_path) as folder:
            write(folder)
    finally:
        os.umask(before)
    for path in (checkpoint / "weights.safetensors", checkpoint / MANIFEST, tmp_path / "weights.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o640, path


@pytest.mark.parametrize("writer", ["torch", "safetensors"])
def test_a_checkpoint_that_does_not_fit_ends_in_one_line_with_its_path_and_the_free_space(tmp_path: Path, writer: str):
    save(tmp_path, 1)
    big = {"weight": torch.zeros(100_000)}

    def write(folder: Path) -> None:
        if writer == "safetensors":
            return save_file(big, folder / "trainable.safetensors")
        with open(folder / "optimizer.pt", "wb") as file:
            torch.save(big, file)

    with (
        content.no_file_beyond(100_000),
        pytest.raises(PrefloopError, match=r"checkpoint-2 \(400000 bytes\): .*too large") as caught,
    ):
        save_checkpoint(tmp_path, 2, {}, write, 2, n_bytes=400_000)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    read_manifest(tmp_path / "checkpoint-1")


def test_a_checkpoint_larger_than_the_free_space_is_not_started(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(PrefloopError, match=rf"checkpoint-1 \({10 * free} bytes\): No space left"):
        save_checkpoint(tmp_path, 1, {}, lambda _: pytest.fail("it was started"), 2, n_bytes=10 * free)
    assert not list(tmp_path.iterdir())
