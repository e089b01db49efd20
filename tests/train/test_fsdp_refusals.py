"""What a model that is split over the processes cannot do is refused in one line that names the cure."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.core.errors import UsageError
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.cost.dry_run import dry_run
from prefloop.train.cost.split import split_bytes
from prefloop.train.preflight import refuse_unsuitable
from prefloop.train.sharding import blocks
from prefloop.train.stage import train


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 4}, "--lora-rank 0, or leave fsdp out"),
        ({}, r"give --reference-draws, such as 4, or a loss without a reference \(.*sft"),
        ({"reference_draws": 2, "mixed_precision": "fp16"}, "--mixed-precision bf16 or no"),
        ({"reference_draws": 2, "aspect_buckets": True}, "leave aspect-buckets or fsdp out"),
        ({"reference": "shapes"}, "another whole model on every GPU.*leave one out"),
        ({"anchor": 1.0}, "anchor compares predictions"),
        ({"reference_draws": 2, "process_timeout": 0}, "process-timeout must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_split_are_refused_with_the_cure(
    config: TrainConfig, changes: dict[str, Any], words: str
):
    with pytest.raises(UsageError, match=words) as refused:
        replace(config, fsdp=True, **changes)
    assert "\n" not in str(refused.value)


def test_a_loss_without_a_reference_needs_no_cached_one(config: TrainConfig):
    assert replace(config, fsdp=True, loss="sft").fsdp
    assert replace(config, fsdp=True, reference_draws=1).fsdp


@pytest.mark.parametrize("optimizer", ["auto", "adafactor", "adamw8bit"])
def test_an_optimizer_with_statistics_of_whole_weights_is_refused(optimizer: Any, config: TrainConfig, tmp_path: Path):
    model = str(tiny.saved("sdxl", tmp_path / "sdxl"))
    family = family_of(find_model(model))
    config = replace(config, model=model, optimizer=optimizer, reference_draws=1)
    refuse_unsuitable(config, family)
    name = "adafactor" if optimizer == "auto" else optimizer  # what auto is for SDXL
    with pytest.raises(UsageError, match=f"the optimizer {name} .*--optimizer adamw"):
        refuse_unsuitable(replace(config, fsdp=True), family)
    refuse_unsuitable(replace(config, fsdp=True, optimizer="adamw"), family)


def test_one_process_alone_is_refused_before_anything_is_written(labelled: PairStore, config: TrainConfig):
    config = replace(config, fsdp=True, reference_draws=1)
    with pytest.raises(UsageError, match=r"this is the only one.*torchrun --nproc-per-node N"):
        train(config, labelled)
    assert not Path(config.output_dir).exists()


def test_a_run_may_be_resumed_with_its_model_split_or_with_another_time_out(config: TrainConfig):
    config = replace(config, reference_draws=1)
    assert replace(config, fsdp=True, process_timeout=60).identity() == config.identity()


@pytest.mark.parametrize("kind", [*tiny.KINDS[:3], *dict.fromkeys(tiny.FLOW_KINDS.values())])
def test_the_layers_of_every_family_are_blocks_and_inner_blocks_come_first(kind: str):
    kind = next((name for name, module in tiny.FLOW_KINDS.items() if module == kind), kind)
    pipeline = tiny.pipeline(kind)
    component = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    found = blocks(component)
    if hasattr(pipeline, "unet"):  # whose blocks are within one another
        inside = {id(weight): weight.numel() for block in found for weight in block.parameters()}
        assert sum(inside.values()) > 0.5 * sum(weight.numel() for weight in component.parameters())
    else:
        lists = [layers for layers in component.children() if isinstance(layers, torch.nn.ModuleList)]
        assert lists
        assert {id(block) for block in found} >= {id(layer) for layers in lists for layer in layers}
    for at, block in enumerate(found):
        assert all(block is not inner for outer in found[:at] for inner in outer.modules())
    assert all(weight.dim() for weight in component.parameters())  # a number cannot be split


def test_what_is_split_is_divided_by_the_number_of_processes():
    step = {"weights": 80, "gradients": 80, "optimizer": 160, "overhead": 5}
    memory: dict[Any, dict[str, int]] = {
        "caching": {"encoders": 90, "overhead": 5},
        "forward and backward": step | {"activations": 40},
        "optimizer step": step,
    }
    # 320 / 2 + 45 and 320 / 4 + 45; with eight processes, 320 / 8 + 45 = 85, the encoders take most
    assert split_bytes(memory) == {2: 205, 4: 125, 8: 95}


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_dry_run_says_what_each_of_several_processes_holds(config: TrainConfig):
    config = replace(config, reference_draws=1)
    text, values = dry_run(replace(config, fsdp=True), None, n_pairs=10)
    assert list(values["bytes_by_processes"]) == ["2", "4", "8"]
    assert "\nfsdp      the memory above is for one process; per device with 2 processes 1." in text
    text, values = dry_run(config, None, n_pairs=10)
    assert values["bytes_by_processes"] is None
    assert "memory above" not in text
