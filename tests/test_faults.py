"""Signals, a full disk, too little memory: one line, the right exit code, nothing lost, and the same command continues."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import content
import pytest
import torch
from prefloop.generate import GenerateConfig
from prefloop.generate.sampler import ImageSampler
from prefloop.store import PairStore, PrefloopError
from prefloop.store.check import check


def signalled(number: int, when: Callable[[], bool], *arguments: object, cwd: Path, **more: Any) -> tuple[int, str]:
    """Run a command, send it a signal as soon as `when` holds; its exit code and what it printed."""
    out = cwd / "printed"
    process = content.started(*arguments, cwd=cwd, out=out, **more)
    deadline = time.monotonic() + 60
    while not when() and process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(25)
    assert process.exitcode is not None, "still running 25 seconds after the signal"
    return process.exitcode, out.read_text()


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_relabel_after_the_current_batch(store: PairStore, tmp_path: Path, number: int, code: int):
    content.fill(store, n_prompts=4, images_per_prompt=5)
    words = ["relabel", "--scorer", "little_scorers:Slow", "--batch-size", 2, "--store", store.path]
    log: Any = {"SLOW_SCORER_LOG": str(tmp_path / "log")}
    is_scoring = lambda: (tmp_path / "log").exists()  # noqa: E731
    ended, printed = signalled(number, is_scoring, *words, cwd=tmp_path, **log)
    assert ended == code
    assert "Traceback" not in printed
    assert "the same command continues" in printed.strip().splitlines()[-1]
    assert store.rows("select status from runs") == [("interrupted",)]
    assert content.finished(*words, cwd=tmp_path, **log)[0] == 0
    # no image that was scored before the signal is scored again
    assert (tmp_path / "log").read_text().count("scored") == 20
    assert check(store) == []


def _a_step_takes_a_moment() -> None:
    from prefloop.train.trainer import Trainer

    step = Trainer.step

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return step(*arguments)

    Trainer.step = slow  # type: ignore[method-assign]  # in a process of its own


@pytest.mark.slow(reason="starts processes")
def test_a_signal_stops_training_with_a_checkpoint(store: PairStore, tiny_pipeline: Path, tmp_path: Path):
    content.add_labeler(store, "me")
    for pair in content.fill(store, n_prompts=12):
        content.add_label(store, pair, "me", "a")
    store.ingest()
    words = ["train", "--labeler", "me", "--model", tiny_pipeline, "--store", store.path, "--output-dir", "tuned"]
    words += ["--max-train-steps", 60, "--train-batch-size", 1, "--validation-steps", 10, "--resolution", 32, "--cpu"]
    words += ["--gradient-accumulation-steps", 1, "--mixed-precision", "no"]  # not the recipe's 8, in slow bf16
    is_training = (tmp_path / "tuned" / "metrics.csv").exists
    code, printed = signalled(signal.SIGTERM, is_training, *words, cwd=tmp_path, first=_a_step_takes_a_moment)
    assert code == 143
    assert "Traceback" not in printed
    assert "the same command resumes" in printed.strip().splitlines()[-1]
    (checkpoint,) = (tmp_path / "tuned").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 10 <= step < 60
    code, printed = content.finished(*words, cwd=tmp_path)
    assert code == 0, printed
    assert f"resuming from step {step} " in printed


def test_a_batch_is_halved_if_memory_runs_out(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from prefloop.generate.stage import plan

    prompts = tiny_pipeline.parent / "prompts.txt"
    prompts.write_text("\n".join(f"a red circle {number}" for number in range(5)))
    config = GenerateConfig(
        model=str(tiny_pipeline), prompts=str(prompts), images_per_prompt=1, num_inference_steps=1, batch_size=4, device="cpu"
    )  # fmt: skip
    planned = plan(config, None)
    sampler, holds = ImageSampler(planned.model, planned.config), 2
    calm = [image.tobytes() for _, images in sampler.batches(planned.missing) for image in images]
    draw = sampler._generate

    def scarce(batch: list) -> list:
        if len(batch) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(batch)

    monkeypatch.setattr(sampler, "_generate", scarce)
    batches = list(sampler.batches(planned.missing))
    assert [len(batch) for batch, _ in batches] == [2, 2, 1]
    assert "batch size 2" in capsys.readouterr().err
    assert [len(batch) for batch, _ in sampler.batches(planned.missing)] == [2, 2, 1]
    assert capsys.readouterr().err == ""  # it remembers
    scarcely = [image for _, images in batches for image in images]
    # the same images in the same order, up to float rounding
    for before, image in zip(calm, scarcely, strict=True):
        assert max(abs(a - b) for a, b in zip(before, image.tobytes(), strict=True)) <= 1
    holds = 0
    with pytest.raises(PrefloopError, match="batch size 1"):
        list(sampler.batches(planned.missing))


def _no_file_beyond() -> None:
    kilobytes = int(os.environ["MOST_KILOBYTES"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))


def limited(kilobytes: int, *arguments: object, cwd: Path) -> tuple[int, str]:
    """Run a command whose files cannot grow beyond a size, as on a full disk; its exit code and what it printed."""
    return content.finished(*arguments, cwd=cwd, first=_no_file_beyond, MOST_KILOBYTES=str(kilobytes))


def test_a_store_is_not_created_on_a_full_disk(tmp_path: Path):
    words = ["generate", "--prompts", "shapes", "--limit", 1, "--store", "full"]
    code, printed = limited(64, *words, cwd=tmp_path)
    assert code == 1, printed
    (line,) = printed.splitlines()
    assert "cannot write" in line
    assert "File too large" in line
    assert not (tmp_path / "full" / "pairs.duckdb").exists()
    assert PairStore.create(tmp_path / "full").rows("select count(*) from pairs") == [(0,)]


@pytest.mark.slow(reason="starts processes")
def test_labels_that_do_not_fit_into_the_database_are_in_the_journal(store: PairStore, tmp_path: Path):
    content.fill(store, n_prompts=40, images_per_prompt=4)
    words = ["relabel", "--scorer", "little_scorers:Redness", "--store", store.path]
    code, printed = limited(16, *words, cwd=tmp_path)
    assert code == 1, printed
    assert "cannot write" in printed
    assert "rebuild" not in printed  # nothing is broken
    assert "Traceback" not in printed
    code, printed = content.finished(*words, cwd=tmp_path)
    assert code == 0, printed
    assert PairStore.open(store.path).rows("select count(*) from scores") == [(160,)]
    assert check(store) == []


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path: Path):
    from prefloop.train.checkpoint import latest_checkpoint, save_checkpoint

    def complete(folder: Path) -> None:
        (folder / "weights").write_bytes(b"1")

    save_checkpoint(tmp_path, 1, {}, complete, 2)

    def full(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    with pytest.raises(PrefloopError, match=r"checkpoint-2: .*No space left"):
        save_checkpoint(tmp_path, 2, {}, full, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest[1]["step"] == 1


def test_a_run_that_fills_the_disk_ends_in_a_line_with_path_and_free_space(trainer: Callable[..., Any]):
    made = trainer(lora_rank=0)
    made.step()
    made.state.save(1)
    made.step()
    with (
        content.no_file_beyond(20_000),
        pytest.raises(PrefloopError, match=r"cannot write .*checkpoint-2 \(\d+ bytes\): File too large"),
    ):
        made.state.save(2)
    assert [path.name for path in made.output.glob("*checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.slow(reason="trains a model")
def test_a_result_that_does_not_fit_leaves_the_checkpoint_and_the_same_command_finishes(
    labelled: PairStore, config: Any, monkeypatch: pytest.MonkeyPatch
):
    from prefloop.train.stage import train
    from prefloop.train.trainer import Trainer

    original = Trainer.finish

    def finish(self: Trainer, *arguments: Any) -> dict:
        with content.no_file_beyond(max_bytes):
            return original(self, *arguments)

    output = Path(config.output_dir)
    for max_bytes, name in ((20_000, "tuned/training.png"), (200_000, "tuned")):  # noqa: B007  # read by finish
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "finish", finish)
            with pytest.raises(
                PrefloopError, match=rf"cannot write .*{name}( \(\d+ bytes\))?: File too large"
            ) as caught:
                train(config, labelled)
        assert "\n" not in str(caught.value)
        assert not list(output.glob(".*.tmp"))
        assert not (output / "prefloop.json").exists()
    assert train(config, labelled)["steps"] == 3


def test_a_full_disk_is_noticed_before_anything_is_encoded(
    labelled: PairStore, config: Any, monkeypatch: pytest.MonkeyPatch
):
    from prefloop.train.stage import train

    free = shutil.disk_usage(labelled.path).free
    monkeypatch.setattr("prefloop.train.stage.checkpoint_bytes", lambda *_: 10 * free)
    with pytest.raises(PrefloopError, match=rf"cannot write .*tuned \({10 * free} bytes\): No space left"):
        train(config, labelled)
    assert not Path(config.output_dir).exists()
    assert not list((labelled.path / "cache").iterdir())


@pytest.mark.parametrize(
    ("folder", "code", "message"),
    [
        ("file", 2, "is a file"),
        ("file/tuned", 1, "cannot write .*file/tuned: Not a directory"),
        ("/proc/tuned", 1, "cannot write /proc/tuned"),
        ("tuned\0", 2, "output-dir contains a NUL character"),
    ],
)
def test_a_folder_that_cannot_be_created_is_named_in_one_line(
    labelled: PairStore,
    config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    code: int,
    message: str,
):
    from prefloop.train.stage import train

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PrefloopError, match=message) as caught:
        train(replace(config, output_dir=folder), labelled)
    assert caught.value.exit_code == code
    assert (tmp_path / "file").read_text() == "mine"
