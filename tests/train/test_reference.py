"""A reference that is another model than the one that training starts from, and training on a part of the timesteps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from prefloop.core.signals import StopSignal
from prefloop.store import IntegrityError, PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.objective import pair_losses
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from safetensors.torch import load_file, save_file

Make = Callable[..., Trainer]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A model of the same kind whose U-Net has other weights."""
    folder = tiny.saved("sd15", tmp_path / "other")
    change_weights(folder, 1.1)
    return folder


def change_weights(folder: Path, factor: float) -> None:
    (path,) = (folder / "unet").glob("*.safetensors")
    save_file({name: factor * weight for name, weight in load_file(path).items()}, path)


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_loss_compares_with_the_reference_that_is_named(trainer: Make, other: Path, lora_rank: int):
    own, named = trainer(lora_rank=lora_rank), trainer(lora_rank=lora_rank, reference=str(other))
    (batch,) = own.data.batch(0, 4)
    expected = trainer(model=str(other)).denoiser.policy_errors([batch])
    errors = named.denoiser.errors([batch])
    assert errors.ref_chosen is not None
    assert errors.ref_rejected is not None
    assert torch.equal(errors.ref_chosen, expected.chosen)
    assert torch.equal(errors.ref_rejected, expected.rejected)
    assert torch.equal(errors.chosen, own.denoiser.errors([batch]).chosen)  # the policy starts where it would
    assert not torch.allclose(errors.ref_chosen, errors.chosen, rtol=1e-3)
    losses = [pair_losses(made.denoiser.errors([batch]), batch.pairs, made.config) for made in (own, named)]
    assert not torch.allclose(losses[0], losses[1], rtol=1e-3)


@pytest.mark.slow(reason="trains a model")
def test_a_reference_does_not_learn_and_is_not_part_of_the_result(
    labelled: PairStore, config: TrainConfig, other: Path
):
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    changed = replace(config, reference=str(other), max_train_steps=2)
    trainer = Trainer(changed, labelled, StopSignal())
    (batch,) = trainer.data.batch(0, 4)
    start = trainer.denoiser.reference_errors([batch]).chosen
    trainer.train("run")
    assert torch.equal(trainer.denoiser.reference_errors([batch]).chosen, start)
    assert before == {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}


def test_a_reference_of_another_kind_is_refused_by_the_first_weight_that_differs(trainer: Make, tmp_path: Path):
    tiny.saved("sdxl", tmp_path / "xl")
    with pytest.raises(UsageError, match=r"the reference .*xl is of another kind than .*: .* instead of"):
        trainer(reference=str(tmp_path / "xl"))


@pytest.mark.slow(reason="trains a model")
def test_a_run_is_not_resumed_with_a_reference_that_has_changed(labelled: PairStore, config: TrainConfig, other: Path):
    first = replace(config, reference=str(other), max_train_steps=1, checkpointing_steps=1)
    train(first, labelled)
    change_weights(other, 1.1)
    with pytest.raises(IntegrityError, match=r"other has changed since the run in .* began"):
        train(replace(first, max_train_steps=2), labelled, resume=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reference": "shapes", "loss": "sft"}, "reference needs a loss with a reference"),
        ({"reference": "shapes", "reference_draws": 1}, "leave it or reference out"),
        ({"min_timestep": 1001}, "min-timestep must be at most 1000, got 1001"),
        ({"min_timestep": 500, "max_timestep": 500}, "min-timestep 500 must be below max-timestep 500"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: TrainConfig, changes: dict, named: str):
    with pytest.raises(UsageError, match=named):
        replace(config, **changes)


def test_training_and_validation_use_only_the_timesteps_of_the_range(trainer: Make):
    made = trainer(min_timestep=700, max_timestep=800)
    batches = [batch for first in range(0, 64, 8) for batch in made.data.batch(first, 8)]
    timesteps = torch.cat([batch.timesteps for batch in batches])
    assert 700 <= timesteps.min() < timesteps.max() <= 800
    assert {700 <= low <= high <= 800 for low, high in made.monitor.validation.bins} == {True}
