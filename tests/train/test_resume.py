"""A run that was interrupted ends as one that was not: same weights, same tables, on the pairs it was begun with."""

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import content
import pytest
import torch
from prefloop.core.errors import Interrupted
from prefloop.core.signals import StopSignal
from prefloop.models.resolve import find_model
from prefloop.models.trained_prompts import read_trained_prompts
from prefloop.store import IntegrityError, NumericalError, PairStore, PrefloopError, UsageError
from prefloop.train import TrainConfig
from prefloop.train.checkpoint import MANIFEST, sha256
from prefloop.train.pairs import select_pairs
from prefloop.train.run_folder.kept_pairs import read_pairs
from prefloop.train.trainer import Trainer, train
from safetensors.torch import load_file, save_file

TABLES = ("metrics.csv", "validation.csv")


class Killed(BaseException):
    """As SIGKILL: nothing is done after it."""


def ended(when: dict[int, str], config: TrainConfig, store: PairStore) -> None:
    """Train until the signal or the kill that comes in a step."""
    whole = Trainer.step

    def optimize(self: Trainer, micro_batches=None):
        if when.get(self.global_step) == "kill":
            raise Killed
        if when.get(self.global_step) == "stop":
            self.stop.number = signal.SIGTERM
        return whole(self, micro_batches)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", optimize)
        with pytest.raises(Killed if "kill" in when.values() else Interrupted):
            train(config, store)


def weights(config: TrainConfig) -> str:
    return sha256(Path(config.output_dir) / "unet" / "diffusion_pytorch_model.safetensors")


def test_an_interruption_changes_neither_tables_nor_what_is_told(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    config = replace(config, max_train_steps=14, checkpointing_steps=4, validation_steps=5)
    whole, cut = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    told = train(whole, labelled)
    ended({6: "stop"}, cut, labelled)  # step 7 is the last one; row 10 is the mean of steps before and after
    ended({11: "kill"}, cut, labelled)  # row 10 and its look are there; the checkpoint is of step 8
    with open(Path(cut.output_dir) / "metrics.csv", "a") as file:
        file.write("1")  # and a row was being written
    again = train(cut, labelled)
    for table in TABLES:
        one, other = ((Path(c.output_dir) / table).read_text() for c in (whole, cut))
        assert one == other, table
        assert len(one.splitlines()) > 2
    assert weights(whole) == weights(cut)
    assert told | {"output_dir": ""} == again | {"output_dir": ""}


def test_labels_that_change_while_a_run_is_interrupted_do_not_keep_it_from_ending(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(config, max_train_steps=4, validation_steps=2)
    whole, cut = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    train(whole, labelled)
    ended({1: "stop"}, cut, labelled)
    pairs = select_pairs(labelled, config)
    content.add_label(labelled, pairs.train[0].pair_id, "redder", "tie", rep=1)  # undone
    content.add_label(labelled, pairs.validation[0].pair_id, "redder", "skip", rep=1)
    ties = labelled.rows("select pair_id from current_labels where choice = 'tie' order by pair_id limit 1")
    content.add_label(labelled, ties[0][0], "redder", "a", rep=1)  # new
    labelled.ingest()
    capsys.readouterr()
    train(cut, labelled)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "changed since" in line]
    assert line == f"3 labels new or changed since; the run in {cut.output_dir} continues with those it began with"
    assert weights(whole) == weights(cut)
    for table in TABLES:
        one, other = ((Path(c.output_dir) / table).read_text() for c in (whole, cut))
        assert one == other, table
    kept = read_pairs(Path(cut.output_dir), cut, labelled)
    assert kept is not None
    assert kept == pairs


def test_a_run_whose_labels_are_all_undone_ends_by_the_same_command(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    ended({0: "stop"}, replace(config, lora_rank=2), labelled)
    for pair in (pairs := select_pairs(labelled, config)).train + pairs.validation:
        content.add_label(labelled, pair.pair_id, "redder", "skip", rep=1)
    labelled.ingest()
    words = ["train", "--labeler", "redder", "--model", config.model, "--store", labelled.path, "--cpu"]
    words += ["--max-train-steps", 3, "--train-batch-size", 2, "--lora-rank", 2, "--lr-warmup-steps", 0]
    code, printed = content.finished(*words, "--output-dir", config.output_dir, cwd=tmp_path)
    assert code == 0, printed
    assert f"{len(pairs)} labels new or changed since" in printed


def test_a_list_of_pairs_that_was_altered_is_named(labelled: PairStore, config: TrainConfig):
    ended({0: "stop"}, config, labelled)
    kept = Path(config.output_dir) / ".run" / "pairs.parquet"
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"pairs.parquet is missing or has changed"):
        train(config, labelled)


def test_other_settings_are_refused_before_anything_is_loaded(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    ended({0: "stop"}, config, labelled)
    monkeypatch.setattr("prefloop.train.trainer.Trainer", lambda *_: pytest.fail("it began"))
    with pytest.raises(UsageError, match="other settings; give them again, or --overwrite or another folder"):
        train(replace(config, beta=7.0), labelled)


def test_a_run_does_not_go_on_with_a_model_that_has_changed(labelled: PairStore, config: TrainConfig, tmp_path: Path):
    model = Path(shutil.copytree(config.model, tmp_path / "base"))
    config = replace(config, model=str(model), lora_rank=2)
    ended({0: "stop"}, config, labelled)
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({name: tensor + 1e-3 for name, tensor in state.items()}, path)
    with pytest.raises(IntegrityError, match=f"{model} has changed since the run in .* began; restore it"):
        train(config, labelled)


def test_the_prompts_that_were_trained_on_are_those_of_the_pairs_of_its_steps(labelled: PairStore, config: TrainConfig):
    output = Path(config.output_dir)
    train(replace(config, max_train_steps=1), labelled)
    data = Trainer(replace(config, max_train_steps=1), labelled, StopSignal()).data
    seen = read_trained_prompts(output)
    assert seen == {draw.pair.prompt_id for draw in data.samples(0, 2)}  # one step of two pairs
    train(replace(config, max_train_steps=30), labelled, resume=True)
    assert read_trained_prompts(output) == {pair.prompt_id for pair in data.pairs.train}
    assert read_trained_prompts(output / "samples") is None


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["torch", "pickle", "list", "other weights"])
def test_a_checkpoint_that_is_not_ours_runs_no_code_and_ends_in_one_line(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, kind: str
):
    ended({0: "stop"}, config, labelled)
    (checkpoint,) = Path(config.output_dir).glob("checkpoint-*")
    canary, name = tmp_path / "canary", "optimizer.pt"
    if kind == "torch":
        torch.save({"optimizer": Evil(canary)}, checkpoint / name)
    elif kind == "pickle":
        (checkpoint / name).write_bytes(pickle.dumps(Evil(canary)))
    elif kind == "list":
        torch.save([1, 2], checkpoint / name)
    else:
        name = "trainable.safetensors"
        (checkpoint / name).write_bytes(b"no tensors")
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": (checkpoint / name).stat().st_size, "sha256": sha256(checkpoint / name)}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="checkpoint-1 cannot be taken up") as caught:
        train(config, labelled)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5
    assert not canary.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(trainer: Callable[..., Trainer], value: float):
    sick = trainer()
    before = {name: tensor.clone() for name, tensor in sick.policy.trainable_state().items()}
    sick.policy.parameters()[0].register_hook(lambda gradient: torch.full_like(gradient, value))
    with pytest.raises(NumericalError, match=r"the gradient norm is (nan|inf) at step 0"):
        sick.step()
    assert all(torch.equal(tensor, sick.policy.trainable_state()[name]) for name, tensor in before.items())


def test_a_signal_while_starting_or_encoding_is_obeyed_and_what_is_encoded_stays(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    from prefloop.train import cache

    early = StopSignal()
    early.number = signal.SIGTERM
    with pytest.raises(Interrupted, match="the same command goes on") as caught:
        train(config, labelled, stop=early)
    assert caught.value.exit_code == 143
    assert not Path(config.output_dir).exists()
    stop, whole, loaded = StopSignal(), cache.load_image, []

    def load(*arguments):
        loaded.append(arguments)
        if len(loaded) == 3:
            stop.number = signal.SIGTERM
        return whole(*arguments)

    monkeypatch.setattr(cache, "load_image", load)
    monkeypatch.setattr(cache, "ENCODE_PIXELS", 4 * 32 * 32)
    with pytest.raises(Interrupted, match="encoding images: 4 of 60 are kept") as caught:
        train(config, labelled, stop=stop)
    assert caught.value.exit_code == 143
    assert len(loaded) == 4  # its batch
    train(replace(config, max_train_steps=1), labelled)
    assert len(loaded) == 60  # none twice


def _signal_while_starting() -> None:
    from prefloop.train import pairs
    from prefloop.train import trainer as loop

    whole = pairs.select_pairs

    def select(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments)

    pairs.select_pairs = select
    del loop.train  # where the command gets on


def test_the_command_obeys_a_signal_while_it_starts(labelled: PairStore, config: TrainConfig, tmp_path: Path):
    words = ["train", "--labeler", "redder", "--model", config.model, "--store", labelled.path, "--cpu"]
    code, printed = content.finished(
        *words, "--output-dir", config.output_dir, cwd=tmp_path, first=_signal_while_starting
    )
    assert code == 143, printed
    assert printed.splitlines()[-1] == (
        "prefloop: interrupted: nothing was trained yet; the same command goes on from here"
    )


def test_an_interrupted_overwriting_says_how_it_goes_on(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    train(replace(config, max_train_steps=1), labelled)
    whole = Trainer.step

    def optimize(self, batches):
        self.stop.number = signal.SIGTERM
        return whole(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", optimize)
        with pytest.raises(Interrupted, match="the same command without --overwrite goes on"):
            train(config, labelled, overwrite=True)
    assert train(config, labelled)["steps"] == 3


def test_a_run_that_has_not_ended_is_named_where_a_model_is_asked_for(labelled: PairStore, config: TrainConfig):
    ended({0: "stop"}, config, labelled)
    with pytest.raises(PrefloopError, match="contains an unfinished training run"):
        find_model(config.output_dir)


def test_equal_checkpoints_have_equal_bytes(labelled: PairStore, config: TrainConfig):
    trainer = Trainer(replace(config, lora_rank=2, checkpoints_total_limit=9), labelled, StopSignal())
    for step in range(1, 9):  # safetensors writes the two names of a header's metadata in any order
        trainer.state.save(step)
    paths = Path(config.output_dir).glob("checkpoint-*/pytorch_lora_weights.safetensors")
    assert len({path.read_bytes() for path in paths}) == 1
