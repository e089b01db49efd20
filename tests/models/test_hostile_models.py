"""Model folders that are truncated, odd or malicious: train and its dry run end with one line, before anything is written."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.store import PairStore, PrefloopError
from prefloop.train import TrainConfig
from prefloop.train.cost.dry_run import dry_run
from prefloop.train.stage import train

ABSENT = object()


def changed(path: Path, **values: Any) -> None:
    settings = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not ABSENT}))


def part(name: str, **values: Any) -> Callable[[Path], None]:
    file = "scheduler_config.json" if name == "scheduler" else "config.json"
    return lambda folder: changed(folder / name / file, **values)


def index(**values: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "model_index.json", **values)


def text(path: str, content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).write_text(content)

    return change


def without(path: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / path)


SETTINGS: dict[str, Callable[[Path], None]] = {
    "index cut": text("model_index.json", '{"_class_name": "Stable'),
    "index a list": text("model_index.json", "[]"),
    "index empty": text("model_index.json", "{}"),
    "index without class": index(_class_name=ABSENT),
    "index class a number": index(_class_name=3),
    "index without a unet's class": index(unet=[None, None]),
    "text encoder a number": index(text_encoder=3),
    "unet config cut": text("unet/config.json", "{"),
    "unet config a list": text("unet/config.json", "[1]"),
    "unet config a number": text("unet/config.json", "7"),
    "unet without size": part("unet", sample_size=ABSENT),
    "unet size null": part("unet", sample_size=None),
    "unet size a text": part("unet", sample_size="64"),
    "unet size negative": part("unet", sample_size=-4),
    "unet size huge": part("unet", sample_size=10**9),
    "unet channels a list": part("unet", in_channels=[4], out_channels=[4]),
    "unet channels differ from vae's": part("unet", in_channels=5, out_channels=5),
    "unet without blocks": part("unet", block_out_channels=[]),
    "unet blocks a text": part("unet", block_out_channels="16"),
    "unet block unknown": part("unet", down_block_types=["NoBlock2D", "CrossAttnDownBlock2D"]),
    "unet width a text": part("unet", cross_attention_dim="16"),
    "unet missing": without("unet"),
    "vae without blocks": part("vae", block_out_channels=[]),
    "vae blocks absent": part("vae", block_out_channels=ABSENT),
    "vae channels null": part("vae", latent_channels=None),
    "vae missing": without("vae"),
    "steps a text": part("scheduler", num_train_timesteps="many"),
    "steps negative": part("scheduler", num_train_timesteps=-1),
    "steps zero": part("scheduler", num_train_timesteps=0),
    "prediction unknown": part("scheduler", prediction_type="flow_prediction"),
    "prediction a list": part("scheduler", prediction_type=[1]),
    "betas unknown": part("scheduler", beta_schedule="nothing"),
    "beta a text": part("scheduler", beta_start="x"),
    "scheduler a list": text("scheduler/scheduler_config.json", "[]"),
    "scheduler missing": without("scheduler"),
}


def pickled(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        torch.save({}, path.with_suffix(".bin"))
        path.unlink()


@pytest.fixture
def hostile(
    tiny_pipeline: Path, config: TrainConfig, tmp_path: Path
) -> Callable[[Callable[[Path], None]], TrainConfig]:
    def make(change: Callable[[Path], None]) -> TrainConfig:
        folder = shutil.copytree(tiny_pipeline, tmp_path / "hostile")
        change(folder)
        return replace(config, model=str(folder))

    return make


@pytest.mark.parametrize("name", SETTINGS)
def test_odd_settings_of_a_model_are_refused_in_one_line(hostile: Callable[..., TrainConfig], name: str):
    with pytest.raises(PrefloopError) as raised:
        family_of(find_model(hostile(SETTINGS[name]).model))
    assert_one_line(raised.value)


@pytest.mark.parametrize("stage", [dry_run, train], ids=["dry run", "train"])
def test_odd_settings_end_a_run_before_anything_is_encoded(
    hostile: Callable[..., TrainConfig], labelled: PairStore, stage: Callable[..., object]
):
    with pytest.raises(PrefloopError) as raised:
        stage(hostile(SETTINGS["unet without blocks"]), labelled)
    assert_one_line(raised.value)
    assert not list((labelled.path / "cache").glob("*"))


def test_a_model_with_only_pickles_is_not_loaded(hostile: Callable[..., TrainConfig], labelled: PairStore):
    with pytest.raises(PrefloopError) as raised:
        train(hostile(pickled), labelled)
    assert_one_line(raised.value)


def truncated(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: len(data) // 2])

    return change


BROKEN = {
    "unet weights cut": truncated("unet/diffusion_pytorch_model.safetensors"),
    "vae weights cut": truncated("vae/diffusion_pytorch_model.safetensors"),
    "text encoder cut": truncated("text_encoder/model.safetensors"),
    "text encoder gone": lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(),
    "tokenizer cut": truncated("tokenizer/tokenizer.json"),
    "tokenizer gone": lambda folder: shutil.rmtree(folder / "tokenizer"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_truncated_or_missing_files_are_refused_in_one_line(
    hostile: Callable[..., TrainConfig], labelled: PairStore, how: str, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(PrefloopError, match="cannot load the model") as raised:
        train(hostile(BROKEN[how]), labelled)
    assert_one_line(raised.value)
    assert "rror" not in capfd.readouterr().err  # and no library prints an error of its own


def test_a_dry_run_names_a_text_encoder_with_broken_settings(hostile: Callable[..., TrainConfig], labelled: PairStore):
    with pytest.raises(PrefloopError, match="cannot be read as JSON") as raised:
        dry_run(hostile(text("text_encoder/config.json", "{")), labelled)
    assert_one_line(raised.value)


def assert_one_line(error: PrefloopError) -> None:
    assert "\n" not in str(error)
    assert "hostile" in str(error)  # names the folder
    assert error.exit_code in (1, 2, 5)
