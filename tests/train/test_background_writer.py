"""Checkpoints are written while the next steps run: of the weights as they were, awaited at the end, their errors raised."""

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.core.errors import Interrupted
from prefloop.models.families import family_of
from prefloop.models.loading import load_component
from prefloop.models.resolve import find_model
from prefloop.store import NumericalError, PairStore, PrefloopError
from prefloop.train import TrainConfig, state
from prefloop.train.background import BackgroundWriter, host_copy, save_copied
from prefloop.train.checkpoint import read_manifest
from prefloop.train.export.result import canonicalize_files
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer

Make = Callable[..., Trainer]
LONG = 20.0  # seconds that no test waits for


class Gate:
    """Holds checkpoints back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.threads = threading.Event(), []
        whole = state.save_checkpoint

        def held(*arguments: Any) -> Path:
            self.threads.append(threading.current_thread())
            assert self.opened.wait(LONG)
            return whole(*arguments)

        monkeypatch.setattr(state, "save_checkpoint", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def bytes_of(checkpoint: Path) -> dict[str, bytes]:
    return {
        path.relative_to(checkpoint).as_posix(): path.read_bytes()
        for path in checkpoint.rglob("*")
        if path.is_file() and path.name != "MANIFEST.json"
    }


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("changes", [{"ema_decay": 0.5}, {"lora_rank": 2}])
def test_a_checkpoint_has_the_weights_of_its_step_however_many_follow(
    trainer: Make, gate: Gate, tmp_path: Path, changes: dict[str, Any]
):
    at_once, behind = (trainer(output_dir=str(tmp_path / name), **changes) for name in ("at-once", "behind"))
    gate.opened.set()
    at_once.step()
    at_once.state.save(1)
    gate.opened.clear()
    behind.step()
    behind.state.begin_save(1)
    for _ in range(2):
        behind.step()
    assert not list(behind.output.glob("checkpoint-*"))
    gate.opened.set()
    behind.state.writer.wait()
    expected, written = (bytes_of(made.output / "checkpoint-1") for made in (at_once, behind))
    assert expected == written
    assert len(written) >= 3
    read_manifest(behind.output / "checkpoint-1")
    assert threading.main_thread() not in gate.threads


def test_a_second_checkpoint_waits_for_the_first(trainer: Make, gate: Gate):
    made = trainer(lora_rank=2)
    made.state.begin_save(1)
    opener = threading.Timer(0.2, gate.opened.set)
    opener.start()
    made.state.begin_save(2)
    assert (made.output / "checkpoint-1").exists()
    made.state.writer.wait()
    assert (made.output / "checkpoint-2").exists()


@pytest.mark.slow(reason="trains a model")
def test_training_goes_on_while_a_checkpoint_is_written_and_waits_for_it_at_the_end(
    labelled: PairStore, config: TrainConfig, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    whole, steps = Trainer.step, []

    def step(self: Trainer, micro_batches: Any = None) -> Any:
        steps.append([path.name for path in self.output.glob("checkpoint-*")])
        if len(steps) == 3:
            threading.Timer(0.2, gate.opened.set).start()
        return whole(self, micro_batches)

    monkeypatch.setattr(Trainer, "step", step)
    train(replace(config, lora_rank=2, checkpointing_steps=2, max_train_steps=3), labelled)
    assert steps == [[], [], []]  # the checkpoint of step 2 was held back during step 3
    assert {path.name for path in Path(config.output_dir).glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}


def test_a_write_that_fails_ends_the_run_in_the_next_step(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    failed = threading.Event()

    def full(*_: Any) -> None:
        failed.set()
        raise PrefloopError("cannot write checkpoint-1: No space left on device")

    whole, steps = Trainer.step, []

    def step(self: Trainer, micro_batches: Any = None) -> Any:
        if steps:
            assert failed.wait(LONG)
            thread = self.state.writer._thread
            assert thread is not None
            thread.join(LONG)
        steps.append(self.global_step)
        return whole(self, micro_batches)

    monkeypatch.setattr(state, "save_checkpoint", full)
    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(PrefloopError, match="No space left"):
        train(replace(config, lora_rank=2, checkpointing_steps=1, max_train_steps=9), labelled)
    assert steps == [0, 1]


def test_an_interrupted_run_has_its_checkpoint_when_it_ends(
    labelled: PairStore, config: TrainConfig, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    whole = Trainer.step

    def step(self: Trainer, micro_batches: Any = None) -> Any:
        self.stop.number = signal.SIGTERM
        threading.Timer(0.2, gate.opened.set).start()
        return whole(self, micro_batches)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Interrupted, match="step 1 of 3 is in"):
        train(replace(config, lora_rank=2), labelled)
    read_manifest(Path(config.output_dir) / "checkpoint-1")


def test_a_run_that_fails_completes_the_checkpoint_it_was_writing_and_tells_its_own_error(
    labelled: PairStore, config: TrainConfig, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    whole = Trainer.step

    def step(self: Trainer, micro_batches: Any = None) -> Any:
        if self.global_step == 1:
            threading.Timer(0.2, gate.opened.set).start()
            raise NumericalError("the loss is nan")
        return whole(self, micro_batches)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(NumericalError, match="the loss is nan"):
        train(replace(config, lora_rank=2, checkpointing_steps=1), labelled)
    read_manifest(Path(config.output_dir) / "checkpoint-1")


def test_an_error_is_raised_once_by_the_next_call():
    def fail() -> None:
        raise OSError("full")

    writer, done = BackgroundWriter(), []
    for call in (writer.wait, lambda: writer.start(lambda: done.append(1))):
        writer.start(fail)
        with pytest.raises(OSError, match="full"):
            call()
    writer.wait()
    writer.check()
    assert done == []


def test_a_copy_does_not_follow_and_keeps_types_that_a_checkpoint_may_hold():
    weight = torch.ones(2)
    copied = host_copy({"state": {0: {"exp_avg": weight, "step": 3}}, "groups": [(weight, "adamw")], "none": None})
    weight += 1
    assert copied["state"][0]["exp_avg"].tolist() == copied["groups"][0][0].tolist() == [1, 1]
    assert copied["state"][0]["step"] == 3
    assert (type(copied["groups"]), type(copied["groups"][0]), copied["none"]) == (list, tuple, None)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd35", "pixart-sigma", "flux2-klein"])
def test_copied_weights_are_written_as_the_model_itself_writes_them(kind: str, tmp_path: Path):
    model = find_model(str(tiny.saved(kind, tmp_path / kind)))
    component = load_component(model)
    assert family_of(model).component in ("unet", "transformer")
    component.save_pretrained(tmp_path / "itself")
    save_copied(type(component), component.config, host_copy(component.state_dict()), tmp_path / "copied")
    for folder in ("itself", "copied"):
        canonicalize_files(tmp_path / folder)
    assert bytes_of(tmp_path / "itself") == bytes_of(tmp_path / "copied")
    assert "_class_name" in json.loads((tmp_path / "copied" / "config.json").read_text())
