"""A result remembers what it was trained on: what is loaded is what was in memory at the end of training, at any depth."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import content
import pytest
import tiny
import torch
from prefloop.generate.pipelines import load_pipeline
from prefloop.store import IntegrityError, PairStore, PrefloopError, UsageError
from prefloop.store.hashing import RESULT_FILE, digests
from prefloop.store.model import Model
from prefloop.store.models import LORA_FILE, find_model
from prefloop.store.runs import StopSignal
from prefloop.train import TrainConfig
from prefloop.train.loop import _Trainer
from prefloop.train.policy import load_unet
from prefloop.train.result import settle
from torch import Tensor

OUTPUTS = ("lora", "unet", "pipeline", "fused")
CHAINS = [
    (*rest, last)
    for rest in (("lora", "lora"), ("unet", "lora"), ("pipeline", "lora"), ("lora", "unet"))
    for last in OUTPUTS
]


class World:
    """Trains one step at a time; each chain of results is made once, and what was in memory at its end is kept."""

    def __init__(self, folder: Path, store: PairStore) -> None:
        self.folder, self.store = folder, store
        self.base = tiny.saved("sd15", folder / "base")
        with torch.random.fork_rng():
            torch.manual_seed(9)
            other: Any = tiny.pipeline("sd15")
            for parameter in (*other.unet.parameters(), *other.vae.parameters()):
                parameter.data += 0.05 * torch.randn_like(parameter)
        self.other = folder / "other"
        other.save_pretrained(self.other)
        self.memory: dict[Path, tuple[dict[str, Tensor], bytes]] = {}

    def trained(self, on: Path, name: str, output: str, **more: Any) -> Path:
        folder = self.folder / name
        if folder in self.memory:
            return folder
        lora = output in ("lora", "fused")
        settings: dict[str, Any] = {"learning_rate": 0.05, "max_train_steps": 1, "train_batch_size": 2, "cpu": True}
        settings |= {"lora_rank": 2 if lora else 0, "lora_alpha": 3.0, "lr_warmup_steps": 0, "validation_steps": 10**9}
        settings |= {"output": "pipeline" if output == "fused" else output, "resolution": 32, "loss": "sft"}
        config = TrainConfig(output_dir=str(folder), labels=("redder",), model=str(on), **(settings | more))
        folder.mkdir()
        trainer = _Trainer(config, self.store, StopSignal())
        if lora:  # a LoRA that has done one step is next to nothing; this one would show
            with torch.no_grad():
                for parameter in trainer.policy.parameters():
                    parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        trainer.step = 0
        trainer._optimize()
        trainer.step = 1
        trainer._finish("run")
        unet = trainer.policy.unet.eval()
        vae = None if config.vae is None else trainer.looks.samples._pipeline(torch.device("cpu")).vae
        self.memory[folder] = (named(unet), drawn(on, unet, vae))
        return folder

    def chain(self, outputs: tuple[str, ...]) -> Path:
        on = self.base
        for depth, output in enumerate(outputs):
            on = self.trained(on, "-".join(outputs[: depth + 1]), output)
        return on


def named(unet: Any) -> dict[str, Tensor]:
    """The weights of a U-Net by name, with peft's own part of the names left out."""
    return {
        name.replace(".base_layer", "").replace(".default_0", ".default"): value.clone()
        for name, value in unet.state_dict().items()
    }


def drawn(root: Path | Model, unet: Any = None, vae: Any = None) -> bytes:
    pipeline: Any
    if isinstance(root, Model):
        pipeline = load_pipeline(root, "cpu", torch.float32)
    else:
        pipeline = load_pipeline(find_model(str(root)).root, "cpu", torch.float32)
        pipeline.unet = unet
        pipeline.vae = vae or load_pipeline(find_model(str(root)), "cpu", torch.float32).vae
    asked = {"num_inference_steps": 2, "height": 32, "width": 32, "generator": torch.Generator().manual_seed(0)}
    return pipeline("a red circle", **asked).images[0].tobytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("lineage")
    store = PairStore.create(folder / "store")
    content.add_labeler(store, "redder")
    for pair in content.fill(store, 8):
        content.add_label(store, pair, "redder", "a", margin=1.0)
    store.absorb()
    return World(folder, store)


@pytest.mark.parametrize("outputs", CHAINS, ids="-".join)
def test_what_is_loaded_is_what_was_in_memory_at_the_end_of_training(world: World, outputs: tuple[str, ...]):
    folder = world.chain(outputs)
    weights, image = world.memory[folder]
    model = find_model(str(folder))
    pipeline: Any = load_pipeline(model, "cpu", torch.float32)
    loaded = named(pipeline.unet)
    if outputs[-1] == "fused":
        weights = fused(weights, 3.0 / 2)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    if outputs[-1] != "fused":
        assert drawn(model) == image
    # what training would start from
    start = named(load_unet(model))
    flat = fused(weights, 3.0 / 2)
    assert start.keys() == flat.keys()
    assert all(torch.equal(start[name], value) for name, value in flat.items())
    on = model.trained_on
    assert on is not None
    assert Path(on.source) == world.folder / "-".join(outputs[:-1])


def fused(weights: dict[str, Tensor], scaling: float) -> dict[str, Tensor]:
    flat = {name: value.clone() for name, value in weights.items() if ".lora_" not in name}
    for name, a in weights.items():
        if name.endswith(".lora_A.default.weight"):
            layer = name.removesuffix(".lora_A.default.weight")
            flat[f"{layer}.weight"] += (weights[f"{layer}.lora_B.default.weight"] @ a) * scaling
    return flat
