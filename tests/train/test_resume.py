"""An interrupted run ends like an undisturbed one: same weights, same tables, on the pairs it began with."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import content
import pytest
import torch
from conftest import train_config
from prefloop.cli import app
from prefloop.core.errors import Interrupted
from prefloop.core.ids import canonical
from prefloop.core.signals import StopSignal
from prefloop.models.resolve import find_model
from prefloop.models.trained_prompts import read_trained_prompts
from prefloop.store import IntegrityError, NumericalError, PairStore, PrefloopError, UsageError
from prefloop.train import TrainConfig
from prefloop.train.checkpoint import MANIFEST, sha256
from prefloop.train.pairs import select_pairs
from prefloop.train.run_folder.saved_pairs import load_pairs
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from run_options import decided
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

TABLES = ("metrics.csv", "validation.csv")


class Killed(BaseException):
    """Like SIGKILL: nothing runs after it."""


def interrupt(when: dict[int, str], config: TrainConfig, store: PairStore) -> None:
    """Train until the signal or the kill in one of the steps."""
    whole = Trainer.step

    def step(self: Trainer, micro_batches=None):
        if when.get(self.global_step) == "kill":
            raise Killed
        if when.get(self.global_step) == "stop":
            self.stop.number = signal.SIGTERM
        return whole(self, micro_batches)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        with pytest.raises(Killed if "kill" in when.values() else Interrupted):
            train(config, store)


@pytest.fixture(scope="module")
def _begun(_labelled: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    store = PairStore(shutil.copytree(_labelled, folder / "store"))
    interrupt({0: "stop"}, train_config(tiny_pipeline, folder), store)
    return folder


@pytest.fixture
def begun(_begun: Path, config: TrainConfig, tmp_path: Path) -> PairStore:
    """The labelled store of a run that a signal ended after its first step."""
    shutil.copytree(_begun / "tuned", config.output_dir)
    return PairStore(shutil.copytree(_begun / "store", tmp_path / "store"))


def weights(config: TrainConfig) -> str:
    return sha256(Path(config.output_dir) / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow(reason="trains a model")
def test_an_interruption_changes_neither_tables_nor_the_summary(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    config = replace(config, max_train_steps=14, checkpointing_steps=4, validation_steps=5)
    whole, cut = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    expected = train(whole, labelled)
    interrupt({6: "stop"}, cut, labelled)  # step 7 is the last one; row 10 is the mean of steps before and after
    interrupt({11: "kill"}, cut, labelled)  # row 10 is written; the checkpoint is of step 8
    with open(Path(cut.output_dir) / "metrics.csv", "a") as file:
        file.write("1")  # and a row was being written
    resumed = train(cut, labelled)
    for table in TABLES:
        text, resumed_text = ((Path(c.output_dir) / table).read_text() for c in (whole, cut))
        assert text == resumed_text, table
        assert len(text.splitlines()) > 2
    assert weights(whole) == weights(cut)
    assert expected | {"output_dir": ""} == resumed | {"output_dir": ""}


@pytest.mark.slow(reason="trains a model")
def test_a_run_without_a_reference_resumes_after_its_first_row_of_metrics(labelled: PairStore, config: TrainConfig):
    config = replace(config, loss="sft", max_train_steps=12)
    interrupt({10: "stop"}, config, labelled)  # row 10 has empty cells: sft has no implicit accuracy
    assert train(config, labelled)["steps"] == 12


@pytest.mark.slow(reason="trains a model")
def test_labels_that_change_during_an_interruption_do_not_change_the_run(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(config, max_train_steps=4, validation_steps=2)
    whole, cut = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    train(whole, labelled)
    interrupt({1: "stop"}, cut, labelled)
    pairs = select_pairs(labelled, config)
    content.add_label(labelled, pairs.train[0].pair_id, "redder", "tie", revision=1)  # undone
    content.add_label(labelled, pairs.validation[0].pair_id, "redder", "skip", revision=1)
    ties = labelled.rows("select pair_id from current_labels where choice = 'tie' order by pair_id limit 1")
    content.add_label(labelled, ties[0][0], "redder", "a", revision=1)  # new
    labelled.ingest()
    capsys.readouterr()
    train(cut, labelled)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "changed since" in line]
    assert line == f"3 labels new or changed since; the run in {cut.output_dir} continues with those it began with"
    assert weights(whole) == weights(cut)
    for table in TABLES:
        text, resumed_text = ((Path(c.output_dir) / table).read_text() for c in (whole, cut))
        assert text == resumed_text, table
    kept = load_pairs(Path(cut.output_dir), cut, labelled)
    assert kept is not None
    assert kept == pairs


@pytest.mark.slow(reason="starts processes")
def test_a_run_whose_labels_are_all_undone_is_finished_by_the_same_command(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    interrupt({0: "stop"}, replace(config, lora_rank=2), labelled)
    for pair in (pairs := select_pairs(labelled, config)).train + pairs.validation:
        content.add_label(labelled, pair.pair_id, "redder", "skip", revision=1)
    labelled.ingest()
    words = ["train", "--labeler", "redder", "--model", config.model, "--store", labelled.path, "--cpu"]
    words += decided(replace(config, lora_rank=2))
    code, printed = content.finished(*words, "--output-dir", config.output_dir, cwd=tmp_path)
    assert code == 0, printed
    assert f"{len(pairs)} labels new or changed since" in printed


@pytest.mark.parametrize("is_new", [True, False])
def test_the_labels_are_read_before_torch_is_loaded_which_needs_memory_too(
    begun: PairStore, config: TrainConfig, tmp_path: Path, is_new: bool
):
    script = """
import sys
import prefloop.train.run_folder.saved_pairs as saved_pairs
whole = saved_pairs.select_for_run
def selected(*arguments, **options):
    found = whole(*arguments, **options)
    sys.exit(f"torch is loaded: {'torch' in sys.modules}; pairs: {found.pairs is not None}")
saved_pairs.select_for_run = selected
from prefloop.cli import main
main()
"""
    output = str(tmp_path / "new") if is_new else config.output_dir
    words = ["train", "--labeler", "redder", "--model", config.model, "--store", str(begun.path), "--cpu"]
    command = [sys.executable, "-c", script, *words, *decided(config), "--output-dir", output]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == f"torch is loaded: False; pairs: {is_new}"


def test_an_altered_list_of_pairs_is_named(begun: PairStore, config: TrainConfig):
    kept = Path(config.output_dir) / ".run" / "pairs.parquet"
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"pairs.parquet is missing or has changed"):
        train(config, begun)


@pytest.mark.slow(reason="trains a model")
def test_a_run_that_is_ended_where_it_was_interrupted_equals_one_that_was_to_be_no_longer(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    config = replace(config, lr_scheduler="constant", validation_steps=5)
    whole, cut = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    expected = train(whole, labelled)  # 3 steps
    interrupt({2: "stop"}, replace(cut, max_train_steps=6), labelled)
    ended = train(cut, labelled)
    assert expected | {"output_dir": ""} == ended | {"output_dir": ""}
    for table in TABLES:
        text, ended_text = ((Path(c.output_dir) / table).read_text() for c in (whole, cut))
        assert text == ended_text, table
    assert weights(whole) == weights(cut)


def test_fewer_steps_than_were_trained_are_refused(begun: PairStore, config: TrainConfig):
    output = Path(config.output_dir)
    (output / "checkpoint-1").rename(output / "checkpoint-4")
    with pytest.raises(
        UsageError, match=r"has done 4 steps, more than --max-train-steps 3; raise it, or give --overwrite or another"
    ):
        train(config, begun)


def test_other_settings_are_refused_before_anything_is_loaded(
    begun: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prefloop.train.stage.Trainer", lambda *_: pytest.fail("training started"))
    with pytest.raises(
        UsageError, match=r"other settings, or .*; repeat its settings, or give --overwrite or another folder"
    ):
        train(replace(config, beta=7.0), begun)


@pytest.mark.slow(reason="trains a model")
def test_an_unfinished_run_of_version_0_1_ends_in_one_line_and_can_be_overwritten(
    labelled: PairStore, config: TrainConfig
):
    config = replace(config, lora_rank=2)
    interrupt({0: "stop"}, config, labelled)
    output = Path(config.output_dir)
    # version 0.1 hashed the same settings under other names
    then = config.resolved() | {"beta_dpo": 500.0, "labels": ["redder"], "unet_init": None, "cache_reference": 0}
    for name in ("beta", "labelers", "init_from", "reference_draws"):
        del then[name]
    identity = hashlib.sha256(canonical(then).encode()).hexdigest()
    for path in (output / ".run" / "run.json", output / "checkpoint-1" / MANIFEST):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"config": identity}))
    words = ["train", "--labeler", "redder", "--model", config.model, "--store", str(labelled.path), "--cpu"]
    words += ["--lora-rank", "2", "--max-train-steps", "3", "--train-batch-size", "2", "--lr-warmup-steps", "0"]
    result = CliRunner().invoke(app, [*words, "--output-dir", config.output_dir])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "of an earlier version of prefloop; repeat its settings, or give --overwrite or another folder" in line
    assert train(config, labelled, overwrite=True)["steps"] == 3


def test_a_run_is_not_resumed_with_a_model_that_has_changed(labelled: PairStore, config: TrainConfig, tmp_path: Path):
    model = Path(shutil.copytree(config.model, tmp_path / "base"))
    config = replace(config, model=str(model), lora_rank=2)
    interrupt({0: "stop"}, config, labelled)
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({name: tensor + 1e-3 for name, tensor in state.items()}, path)
    with pytest.raises(IntegrityError, match=f"{model} has changed since the run in .* began; restore it"):
        train(config, labelled)


@pytest.mark.slow(reason="trains a model")
def test_the_recorded_training_prompts_are_those_of_the_steps_taken(labelled: PairStore, config: TrainConfig):
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


@pytest.mark.parametrize("payload", ["torch", "pickle", "list", "other weights"])
def test_a_forged_checkpoint_runs_no_code_and_ends_in_one_line(
    begun: PairStore, config: TrainConfig, tmp_path: Path, payload: str
):
    (checkpoint,) = Path(config.output_dir).glob("checkpoint-*")
    canary, name = tmp_path / "canary", "optimizer.pt"
    if payload == "torch":
        torch.save({"optimizer": Evil(canary)}, checkpoint / name)
    elif payload == "pickle":
        (checkpoint / name).write_bytes(pickle.dumps(Evil(canary)))
    elif payload == "list":
        torch.save([1, 2], checkpoint / name)
    else:
        name = "trainable.safetensors"
        (checkpoint / name).write_bytes(b"not tensors")
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": (checkpoint / name).stat().st_size, "sha256": sha256(checkpoint / name)}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="checkpoint-1 cannot be loaded") as caught:
        train(config, begun)
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


@pytest.mark.slow(reason="trains a model")
def test_a_signal_during_start_or_encoding_is_obeyed_and_encoded_images_are_kept(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    from prefloop.train import cache

    early = StopSignal()
    early.number = signal.SIGTERM
    with pytest.raises(Interrupted, match="the same command continues") as caught:
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
    with pytest.raises(Interrupted, match="encoding images: 4 of 12 are kept") as caught:
        train(config, labelled, stop=stop)
    assert caught.value.exit_code == 143
    n_read = len(loaded)
    # the two of the held-out pair, and a batch, which is finished; the next one may have been read ahead
    assert 6 <= n_read <= 10
    train(config, labelled)
    assert len(loaded) - n_read == 8  # what was encoded is not read again


def _signal_while_starting() -> None:
    from prefloop.train import stage
    from prefloop.train.run_folder import saved_pairs

    whole = saved_pairs.select_pairs

    def select(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments)

    saved_pairs.select_pairs = select
    del stage.train  # the command would fail if it went on


def test_the_command_obeys_a_signal_while_it_starts(labelled: PairStore, config: TrainConfig, tmp_path: Path):
    words = ["train", "--labeler", "redder", "--model", config.model, "--store", labelled.path, "--cpu"]
    code, printed = content.finished(
        *words, "--output-dir", config.output_dir, cwd=tmp_path, first=_signal_while_starting
    )
    assert code == 143, printed
    assert printed.splitlines()[-1] == (
        "prefloop: interrupted: nothing was trained yet; the same command continues from here"
    )


@pytest.mark.slow(reason="trains a model")
def test_an_interrupted_overwrite_says_how_to_resume(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    train(replace(config, max_train_steps=1), labelled)
    whole = Trainer.step

    def step(self, batches):
        self.stop.number = signal.SIGTERM
        return whole(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        with pytest.raises(Interrupted, match="the same command without --overwrite resumes"):
            train(config, labelled, overwrite=True)
    assert train(config, labelled)["steps"] == 3


@pytest.mark.usefixtures("begun")
def test_an_unfinished_run_is_not_a_model(config: TrainConfig):
    with pytest.raises(PrefloopError, match="contains an unfinished training run"):
        find_model(config.output_dir)


def test_equal_checkpoints_have_equal_bytes(labelled: PairStore, config: TrainConfig):
    trainer = Trainer(replace(config, lora_rank=2, checkpoints_total_limit=9), labelled, StopSignal())
    for step in range(1, 9):  # safetensors writes the two names of a header's metadata in any order
        trainer.state.save(step)
    paths = Path(config.output_dir).glob("checkpoint-*/pytorch_lora_weights.safetensors")
    assert len({path.read_bytes() for path in paths}) == 1
