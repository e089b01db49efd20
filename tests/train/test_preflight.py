"""What cannot work on this machine is refused before anything is created, by train and by its dry run in the same words."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prefloop.store import PairStore, PrefloopError, UsageError
from prefloop.train import TrainConfig
from prefloop.train.cost.dry_run import dry_run
from prefloop.train.stage import train

Stage = Callable[[TrainConfig, PairStore], object]


def overwriting(config: TrainConfig, store: PairStore) -> object:
    return train(config, store, overwrite=True)


@pytest.fixture(params=[train, dry_run, overwriting], ids=["train", "dry run", "overwrite"])
def stage(request: pytest.FixtureRequest) -> Stage:
    return request.param


@pytest.fixture(autouse=True)
def result(config: TrainConfig) -> Path:
    """A finished result in the output folder."""
    path = Path(config.output_dir) / "prefloop.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"steps": 3}))
    return path


IMPOSSIBLE = [
    ({"mixed_precision": "fp16"}, UsageError, "mixed-precision fp16 needs a GPU.*--mixed-precision bf16 or no"),
    ({"mixed_precision": "fp16", "lora_rank": 4}, UsageError, "fp16 needs a GPU"),
    ({"optimizer": "adamw8bit"}, PrefloopError, r"pip install 'prefloop\[bitsandbytes\]'"),
    (
        {"quantize": "nf4", "lora_rank": 4},
        PrefloopError,
        r"quantize nf4 needs .*: pip install 'prefloop\[bitsandbytes\]'",
    ),
    ({"report_to": "wandb"}, PrefloopError, r"wandb is not installed.*pip install 'prefloop\[wandb\]'"),
    ({"push_to_hub": "me/mine"}, PrefloopError, "nobody is logged in"),
]


@pytest.mark.parametrize(("changes", "error", "says"), IMPOSSIBLE)
def test_what_cannot_work_here_ends_in_one_line_and_changes_nothing(
    stage: Stage,
    changes: dict,
    error: type[PrefloopError],
    says: str,
    labelled: PairStore,
    config: TrainConfig,
    result: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("prefloop.train.export.hub.get_token", lambda: None)
    with pytest.raises(error, match=says) as raised:
        stage(replace(config, **changes), labelled)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == error.exit_code
    assert [path.name for path in result.parent.iterdir()] == [result.name]
    assert json.loads(result.read_text()) == {"steps": 3}
    assert not list((labelled.path / "cache").glob("*"))


def test_fp16_is_refused_without_a_gpu_even_if_cpu_is_not_set(
    stage: Stage, labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        stage(replace(config, mixed_precision="fp16", cpu=False), labelled)


def test_offline_a_push_is_refused_with_an_alternative(
    stage: Stage, labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prefloop.train.export.hub.get_token", lambda: "secret")
    with pytest.raises(PrefloopError, match=r"hub cannot be reached.*prefloop card .*tuned --push-to-hub me/mine"):
        stage(replace(config, push_to_hub="me/mine"), labelled)


@pytest.mark.parametrize("name", ["", "a/b/c", "has space/x", "../x"])
def test_an_invalid_hub_name_is_refused(name: str, config: TrainConfig):
    with pytest.raises(UsageError, match="like owner/name"):
        replace(config, push_to_hub=name)


def test_a_learning_rate_that_is_too_large_once_scaled_is_refused(config: TrainConfig):
    with pytest.raises(UsageError, match="times the pairs per step"):
        replace(config, learning_rate=1e4, scale_lr=True, train_batch_size=4)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"learning_rate": 1e38}, "learning-rate must be at most 10000"),
        ({"adam_weight_decay": 1e39}, "removes a whole weight in one step"),
        ({"lora_rank": 1_000_000}, "lora-rank must be at most 4096"),
        ({"resolution": 100_000}, "resolution must be a multiple of 8 from 8 to 16384"),
    ],
)
def test_settings_that_would_destroy_the_model_or_fill_the_memory_are_refused(
    config: TrainConfig, settings: dict, line: str
):
    with pytest.raises(UsageError, match=line):
        replace(config, **settings)
