"""A checkpoint holds each weight once, and earlier ones, which held them twice, are resumed too."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from prefloop.models.resolve import find_model
from prefloop.store import IntegrityError
from prefloop.train.checkpoint import MANIFEST, sha256
from prefloop.train.resources import checkpoint_bytes
from prefloop.train.trainer import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor

Make = Callable[..., Trainer]
UNET = "diffusion_pytorch_model.safetensors"


def saved(made: Trainer) -> Path:
    made.step()
    made.state.save(1)
    return made.output / "checkpoint-1"


def weights(made: Trainer) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in made.policy.trainable_state().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def files(checkpoint: Path) -> set[str]:
    return {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}


def rewritten(checkpoint: Path) -> None:
    """Make its manifest that of the files that are there."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"] = {
        name: {"bytes": (checkpoint / name).stat().st_size, "sha256": sha256(checkpoint / name)}
        for name in files(checkpoint) - {MANIFEST}
    }
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def test_a_whole_u_net_is_written_once_and_resumed_from_there(trainer: Make):
    made = trainer()
    checkpoint = saved(made)
    assert files(checkpoint) == {MANIFEST, "optimizer.pt", "unet/config.json", f"unet/{UNET}"}
    again = trainer()
    assert not equal(weights(again), weights(made))
    assert again.state.restore() == 1
    assert equal(weights(again), weights(made))
    # weights of 4 bytes, two moments of each in optimizer.pt, and little else
    n_bytes = 4 * sum(weight.numel() for weight in made.policy.parameters())
    sizes = {name: (checkpoint / name).stat().st_size for name in files(checkpoint)}
    assert sizes[f"unet/{UNET}"] == pytest.approx(n_bytes, rel=0.2)
    assert sum(sizes.values()) == pytest.approx(3 * n_bytes, rel=0.4)


def test_a_checkpoint_of_an_earlier_version_is_resumed(trainer: Make):
    made = trainer()
    checkpoint = saved(made)
    own = weights(made)
    save_file(own, checkpoint / "trainable.safetensors")
    (checkpoint / "unet" / UNET).write_bytes(b"")  # to load, not to resume from
    rewritten(checkpoint)
    again = trainer()
    assert again.state.restore() == 1
    assert equal(weights(again), own)


def test_weights_in_several_files_are_resumed(trainer: Make):
    made = trainer()
    checkpoint = saved(made)
    whole = load_file(checkpoint / "unet" / UNET)
    (checkpoint / "unet" / UNET).unlink()
    names = sorted(whole)
    for number, part in enumerate((names[:20], names[20:]), 1):
        name = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, checkpoint / "unet" / name)
    rewritten(checkpoint)
    again = trainer()
    assert again.state.restore() == 1
    assert equal(weights(again), weights(made))
    (checkpoint / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    rewritten(checkpoint)
    with pytest.raises(IntegrityError, match="the checkpoint's weights belong to another model"):
        trainer().state.restore()


def test_a_lora_is_resumed_from_the_names_of_peft(trainer: Make):
    made = trainer(lora_rank=2)
    assert "trainable.safetensors" in files(saved(made))
    again = trainer(lora_rank=2)
    assert again.state.restore() == 1
    assert equal(weights(again), weights(made))


def test_the_room_that_a_checkpoint_needs_is_that_of_weights_and_moments(trainer: Make):
    made = trainer(optimizer="adamw")
    model = find_model(made.config.model)
    n_bytes = (Path(model.source) / "unet" / UNET).stat().st_size
    assert checkpoint_bytes(made.config, model) == 3 * n_bytes
    written = sum(path.stat().st_size for path in saved(made).rglob("*") if path.is_file())
    assert 0.8 * written < checkpoint_bytes(made.config, model)
