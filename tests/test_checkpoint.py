"""A checkpoint is whole or not there."""

from pathlib import Path

import pytest
from prefloop.store import IntegrityError
from prefloop.train.checkpoint import MANIFEST, latest_checkpoint, read_manifest, save_checkpoint


def save(output: Path, step: int, keep: int = 5) -> Path:
    def write(folder: Path) -> None:
        (folder / "unet").mkdir()
        (folder / "unet" / "weights").write_bytes(bytes([step]) * 100)

    return save_checkpoint(output, step, {"config": "x"}, write, keep)


def test_the_newest_checkpoint_is_found_with_its_manifest(tmp_path: Path):
    save(tmp_path, 9)
    newest = save(tmp_path, 10)  # 10 is newer than 9, though it sorts before it as text
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == newest
    assert found[1]["step"] == 10


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
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    assert "checkpoint-2" in capsys.readouterr().err


def test_a_run_killed_while_writing_leaves_no_checkpoint(tmp_path: Path):
    def killed(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 3, {}, killed, 2)
    assert latest_checkpoint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []  # left-overs are swept


def test_only_the_last_valid_ones_are_kept(tmp_path: Path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]
