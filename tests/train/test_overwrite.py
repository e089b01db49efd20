"""What --overwrite removes: only files that train wrote, in a folder where it ran, once the new run has a checkpoint."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import train_config
from prefloop.store import NumericalError, PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.checkpoint import newest_first, save_checkpoint
from prefloop.train.run_folder.claim import claim_folder
from prefloop.train.run_folder.overwrite import drop_previous
from prefloop.train.run_folder.ownership import split_by_owner
from prefloop.train.run_folder.publish import publish
from prefloop.train.run_folder.readme import write_readme
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer


def content_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below, except the lock and the store's index, which reading may change."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if "duckdb" not in path.name}


@pytest.mark.parametrize(
    "place", ["images", "store", "parent of the store", "model", "current", "home", "in the model"]
)
def test_overwriting_refuses_folders_that_are_not_a_run(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    model = shutil.copytree(config.model, tmp_path / "model")
    images = tmp_path / "images"
    images.mkdir()
    (images / "holiday.png").write_bytes(b"ours")
    home = tmp_path / "home"
    home.mkdir()
    (home / ".profile").write_text("export EDITOR=vi")
    monkeypatch.setenv("HOME", str(home))
    here = tmp_path / "here"
    here.mkdir()
    (here / ".git").mkdir()
    (here / ".git" / "HEAD").write_text("ref: refs/heads/main")
    monkeypatch.chdir(here)
    folder = {
        "images": images,
        "store": labelled.path,
        "parent of the store": tmp_path,
        "model": model,
        "current": Path("."),
        "home": home,
        "in the model": model / "unet",
    }[place]
    if place in ("current", "home"):  # it has a run's marker and no other file: its location is the only reason
        shutil.rmtree(folder / ".git", ignore_errors=True)
        (folder / ".run").mkdir()
        (folder / ".run" / "run.json").write_text('{"written_by": "prefloop train", "config": "other"}')
    before = content_of(tmp_path)
    with pytest.raises(UsageError) as caught:
        train(replace(config, model=str(model), output_dir=str(folder)), labelled, overwrite=True)
    assert "give --overwrite" not in str(caught.value)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["thesis.txt", "samples/mine.png", "metrics.csv", "logs/app.log", "training-data/a.png"]
)
def test_a_folder_without_a_run_is_left_alone_and_overwrite_is_not_suggested(
    labelled: PairStore, config: TrainConfig, name: str
):
    path = Path(config.output_dir) / name
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="name another folder") as caught:
            train(config, labelled, overwrite=overwrite)
        assert "or give --overwrite" not in str(caught.value)
        assert path.read_text() == "years of work"


@pytest.fixture(scope="module")
def _finished(_labelled: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    store = PairStore(shutil.copytree(_labelled, folder / "store"))
    train(replace(train_config(tiny_pipeline, folder), max_train_steps=1), store)
    return folder / "tuned"


@pytest.fixture
def finished(_finished: Path, config: TrainConfig) -> Path:
    """The folder of a finished run of one step."""
    return shutil.copytree(_finished, Path(config.output_dir))


@pytest.mark.slow(reason="trains a model")
def test_a_run_is_overwritten_only_once_the_new_one_has_a_checkpoint(
    finished: Path, labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    before = content_of(finished)
    assert split_by_owner(finished)[1] == []  # every file of a run is recognized

    def fails(*_):
        assert (finished / "prefloop.json").exists()
        assert not (finished / "checkpoint-1").exists()
        raise NumericalError("the loss is nan")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", fails)
        with pytest.raises(NumericalError):
            train(replace(config, lora_rank=2), labelled, overwrite=True)
    assert content_of(finished) == before
    # the pipeline's files, which a LoRA does not have, are removed
    assert train(replace(config, lora_rank=2), labelled, overwrite=True)["steps"] == 3
    assert not (finished / "unet").exists()
    assert not list(finished.glob(".previous*"))
    assert [path.name for path in newest_first(finished)] == ["checkpoint-3"]
    assert json.loads((finished / "prefloop.json").read_text())["kind"] == "lora"
    assert split_by_owner(finished)[1] == []


@pytest.mark.slow(reason="trains a model")
def test_overwriting_names_files_that_train_did_not_write(finished: Path, labelled: PairStore, config: TrainConfig):
    (finished / "samples").mkdir()
    mine = [finished / name for name in ("notes.txt", "samples/cat.png", "unet/notes.txt", "checkpoint-1/notes.txt")]
    for path in mine:
        path.write_text("mine")
    edited = finished / "README.md"
    edited.write_text(edited.read_text().replace("tuned", "well tuned"))
    before = content_of(finished)
    with pytest.raises(UsageError, match=r"README.md, notes.txt, checkpoint-1/notes.txt and 2 more; move them away"):
        train(config, labelled, overwrite=True)
    with pytest.raises(UsageError, match="give --resume, or another folder"):  # --overwrite is not suggested
        train(config, labelled)
    assert content_of(finished) == before


def test_a_run_does_not_overwrite_what_it_reads(finished: Path, labelled: PairStore, config: TrainConfig):
    before = content_of(finished)
    for reads in ({"model": finished}, {"vae": finished / "vae"}, {"init_from": finished / "checkpoint-1" / "unet"}):
        changed = replace(config, lora_rank=2, **{name: str(path) for name, path in reads.items()})
        with pytest.raises(UsageError, match="which this run reads; name another folder"):
            train(changed, labelled, overwrite=True)
    assert content_of(finished) == before


def test_resume_with_overwrite_is_refused(finished: Path, labelled: PairStore, config: TrainConfig):
    before = content_of(finished)
    with pytest.raises(UsageError, match=r"--resume.*--overwrite") as caught:
        train(config, labelled, resume=True, overwrite=True)
    assert caught.value.exit_code == 2
    assert content_of(finished) == before


@pytest.mark.slow(reason="trains a model")
def test_a_readme_or_unet_of_the_user_is_not_overwritten(labelled: PairStore, config: TrainConfig):
    output = Path(config.output_dir)
    stopped = replace(config, max_train_steps=1)

    def add_user_files(*_):
        (output / "README.md").write_text("my notes")
        (output / "unet").mkdir()
        (output / "unet" / "config.json").write_text("mine")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prefloop.train.trainer.plot_training", add_user_files)  # the last step before the result
        with pytest.raises(
            UsageError, match=r"unet/config.json was not written by train, or has changed; move it away"
        ):
            train(stopped, labelled)
    assert (output / "unet" / "config.json").read_text() == "mine"
    shutil.rmtree(output / "unet")
    summary = train(stopped, labelled)  # the same command continues
    assert summary["loss"] == pytest.approx(0.693, abs=0.01)  # known although no step was taken
    assert summary["validation"]["n_pairs"] > 0
    assert (output / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert (output / "README.md").read_text() == "my notes"
    with pytest.raises(UsageError, match="move it away"):
        write_readme(output, "# A card\n")


class Killed(BaseException):
    """Like SIGKILL: the code does nothing more."""


def test_killed_at_any_moment_of_overwriting_the_old_or_the_new_run_is_whole(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    new = replace(config, beta=7.0)

    def run_of(folder: Path, which: TrainConfig, text: str) -> None:
        def write(checkpoint: Path) -> None:
            (checkpoint / "weights").write_text(text)

        (folder / "metrics.csv").write_text(text)
        save_checkpoint(folder, 3, {"config": which.identity()}, write, 2)

    first = tmp_path / "first"
    with claim_folder(first, config, False, False):
        run_of(first, config, "old")
        with publish(first) as result:
            (result / "unet").mkdir()
            (result / "unet" / "weights").write_text("old")
            (result / "prefloop.json").write_text('{"steps": 3}')
    old = content_of(first)
    calls = ("rename", "replace", "unlink", "rmdir", "mkdir")
    whole = {name: getattr(os, name) for name in calls}
    survivors, moment = set(), 0
    for moment in range(200):
        folder = shutil.copytree(first, tmp_path / f"killed-{moment}")
        calls_left = moment

        def dying(name: str):
            def call(*arguments, **more):
                nonlocal calls_left
                calls_left -= 1
                if calls_left < 0:
                    raise Killed
                return whole[name](*arguments, **more)

            return call

        with monkeypatch.context() as patched:
            for name in calls:
                patched.setattr(os, name, dying(name))
            try:
                with claim_folder(folder, new, False, True):
                    run_of(folder, new, "new")
                    drop_previous(folder)
            except Killed:
                pass
        # the next command restores order
        with pytest.raises(UsageError), claim_folder(folder, replace(config, beta=8.0), False, False):
            pass
        (checkpoint,) = newest_first(folder)
        text = (checkpoint / "weights").read_text()
        assert (folder / "metrics.csv").read_text() == text
        assert (folder / "prefloop.json").exists() == (text == "old")
        assert not list(folder.glob(".previous*"))
        if text == "old":
            assert content_of(folder) == old
        survivors.add(text)
        if calls_left >= 0:
            break
    assert survivors == {"old", "new"}
    assert moment > 20
