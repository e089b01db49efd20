"""A result remembers what it was trained on: loading gives what was in memory at the end of training, at any depth."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import content
import pytest
import tiny
import torch
from prefloop.core.hashing import RESULT_FILE, fingerprint
from prefloop.core.signals import StopSignal
from prefloop.models.loading import load_component
from prefloop.models.model import Model
from prefloop.models.parts import with_parts
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from prefloop.store import IntegrityError, PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.prepare import _vae_key
from prefloop.train.trainer import Trainer
from safetensors.torch import load_file
from torch import Tensor

OUTPUTS = ("lora", "unet", "pipeline", "fused")
CHAINS = [
    (*earlier, last)
    for earlier in (("lora", "lora"), ("unet", "lora"), ("pipeline", "lora"), ("lora", "unet"))
    for last in OUTPUTS
]


class World:
    """Trains one step at a time; each chain of results is made once, and what was in memory at its end is remembered."""

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
        settings |= {"format": "pipeline" if output == "fused" else output, "resolution": 32, "loss": "sft"}
        config = TrainConfig(output_dir=str(folder), labelers=("redder",), model=str(on), **(settings | more))
        folder.mkdir()
        trainer = Trainer(config, self.store, StopSignal())
        if lora:  # after one step a LoRA changes next to nothing; this makes it visible
            with torch.no_grad():
                for parameter in trainer.policy.parameters():
                    parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        trainer.global_step = 0
        trainer.step()
        trainer.global_step = 1
        trainer.finish("run")
        unet = trainer.policy.component.eval()
        vae = trainer.monitor.samples._pipeline(unet, torch.device("cpu")).vae
        self.memory[folder] = (named(unet), generated(on, unet, vae))
        return folder

    def chain(self, outputs: tuple[str, ...]) -> Path:
        on = self.base
        for depth, output in enumerate(outputs):
            on = self.trained(on, "-".join(outputs[: depth + 1]), output)
        return on


def named(unet: Any) -> dict[str, Tensor]:
    """The weights of a U-Net by name, without peft's own part of the names."""
    return {
        name.replace(".base_layer", "").replace(".default_0", ".default"): value.clone()
        for name, value in unet.state_dict().items()
    }


def generated(root: Path | Model, unet: Any = None, vae: Any = None) -> bytes:
    pipeline: Any
    if isinstance(root, Model):
        pipeline = load_pipeline(root, "cpu", torch.float32)
    else:
        pipeline = load_pipeline(find_model(str(root)).root, "cpu", torch.float32)
        pipeline.unet = unet
        pipeline.vae = vae
    settings = {"num_inference_steps": 2, "height": 32, "width": 32, "generator": torch.Generator().manual_seed(0)}
    return pipeline("a red circle", **settings).images[0].tobytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("lineage")
    store = PairStore.create(folder / "store")
    content.add_labeler(store, "redder")
    for pair in content.fill(store, 8):
        content.add_label(store, pair, "redder", "a", margin=1.0)
    store.ingest()
    return World(folder, store)


@pytest.mark.slow(reason="trains and loads small models")
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
    differ = max(abs(a - b) for a, b in zip(generated(model), image, strict=True))
    assert differ <= (1 if outputs[-1] == "fused" else 0)  # of 256 levels
    # the weights training would start from
    start = named(load_component(model))
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


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_result_with_another_unet_and_vae_is_loaded_and_trained_on_with_them(world: World, output: str):
    parts = {"init_from": str(world.other / "unet"), "vae": str(world.other)}
    folder = world.trained(world.base, f"parts-{output}", output, **parts)
    results = [folder]
    if output in ("lora", "unet"):
        results.append(world.trained(folder, f"parts-{output}-lora", "lora"))
    vae = find_state(world.other / "vae")
    for result in results:
        weights, image = world.memory[result]
        weights = fused(weights, 3.0 / 2) if result == folder and output == "fused" else weights
        model = find_model(str(result))
        pipeline: Any = load_pipeline(model, "cpu", torch.float32)
        loaded = named(pipeline.unet)
        assert all(torch.equal(loaded[name], value) for name, value in weights.items())
        assert all(torch.equal(pipeline.vae.state_dict()[name], value) for name, value in vae.items())
        assert max(abs(a - b) for a, b in zip(generated(model), image, strict=True)) <= 1
    on = find_model(str(folder)).trained_on
    assert on is not None
    assert (on.kind, on.composition.root.source) == ("parts", str(world.base))
    # as a baseline it is the base with these parts
    assert all(
        torch.equal(value, find_state(world.other / "unet")[name])
        for name, value in load_component(on).state_dict().items()
    )
    assert on.model_id != find_model(str(world.base)).model_id


@pytest.mark.slow(reason="trains and loads small models")
def test_the_latent_cache_depends_on_the_vae_in_use(world: World):
    base = find_model(str(world.base))
    config = TrainConfig(output_dir="x", labelers=("redder",))
    own, other = (fingerprint(folder / "vae").hex for folder in (world.base, world.other))
    assert own != other
    assert _vae_key(config, base) == own
    assert _vae_key(replace(config, vae=str(world.other)), base) == other
    folder = world.trained(world.base, "parts-lora", "lora", init_from=str(world.other / "unet"), vae=str(world.other))
    assert _vae_key(config, find_model(str(folder))) == other  # one round later, without naming it again


def find_state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_a_unet_or_vae_that_does_not_fit_is_refused_by_name(world: World, tmp_path: Path):
    wide = tiny.saved("sdxl", tmp_path / "wide")
    with pytest.raises(UsageError, match=r"wide does not fit .*: its cross_attention_dim is 40, not 16"):
        load_component(with_parts(find_model(str(world.base)), init_from=str(wide)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty contains no U-Net"):
        load_component(with_parts(find_model(str(world.base)), init_from=str(tmp_path / "empty")))


def moved(world: World, outputs: tuple[str, ...], folder: Path) -> list[Path]:
    """Copies of a chain's results in another folder, the first one first."""
    world.chain(outputs)
    names = ["-".join(outputs[: depth + 1]) for depth in range(len(outputs))]
    return [Path(shutil.copytree(world.folder / name, folder / name)) for name in names]


@pytest.mark.slow(reason="trains and loads small models")
def test_the_base_is_found_from_any_working_folder_and_after_both_were_moved(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = world.chain(("lora", "lora"))
    expected = named(load_component(find_model(str(folder))))
    monkeypatch.chdir(folder)
    by_dot = find_model(".")
    assert all(torch.equal(value, expected[name]) for name, value in named(load_component(by_dot)).items())
    first, second = moved(world, ("lora", "lora"), tmp_path)
    hidden = world.folder / "hidden"
    (world.folder / "lora").rename(hidden)
    try:
        model = find_model(str(second))
        assert model.base is not None
        assert Path(model.base.source).resolve() == first
        assert model.model_id == by_dot.model_id
        shutil.rmtree(first)
        with pytest.raises(IntegrityError, match=r"lora-lora needs .*/lora, which does not exist"):
            find_model(str(second))
    finally:
        hidden.rename(world.folder / "lora")


@pytest.mark.parametrize("option", ["unet_init", "vae"])
def test_a_result_of_version_0_1_with_another_unet_or_vae_is_refused(world: World, tmp_path: Path, option: str):
    folder = Path(shutil.copytree(world.chain(("lora",)), tmp_path / "tuned"))
    about = json.loads((folder / RESULT_FILE).read_text())
    del about["trained_on"]
    base = str(world.base)
    about |= {"base_model": base, "base_model_id": str(find_model(base).model_id), "config": {"model": base}}
    (folder / RESULT_FILE).write_text(json.dumps(about))
    assert find_model(str(folder)).base is not None
    about["config"][option] = str(world.other)  # 0.1 recorded no hash of it
    (folder / RESULT_FILE).write_text(json.dumps(about))
    with pytest.raises(IntegrityError, match=rf"{'vae' if option == 'vae' else 'init-from'} .*/other by version 0\.1"):
        find_model(str(folder))


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_base_that_has_changed_is_refused_and_nothing_is_loaded(world: World, tmp_path: Path, output: str):
    *_, first, second = moved(world, ("lora", "unet", output), tmp_path)
    about = json.loads((second / RESULT_FILE).read_text())
    about["trained_on"] = about["trained_on"] | {"folder": str(first)}
    (second / RESULT_FILE).write_text(json.dumps(about))
    (first / "unet" / "more.json").write_text("{}")
    if output in ("pipeline", "fused"):  # complete without it
        model = find_model(str(second))
        assert model.trained_on is None
        assert generated(model)
        return
    with pytest.raises(IntegrityError, match=rf"{second} was trained on {first}, which has changed") as caught:
        find_model(str(second))
    assert (caught.value.exit_code, len(str(caught.value).splitlines())) == (5, 1)


@pytest.mark.slow(reason="trains and loads small models")
def test_the_code_in_the_card_loads_the_chain_with_diffusers_alone(world: World, monkeypatch: pytest.MonkeyPatch):
    for outputs in (("lora", "lora", "lora"), ("unet", "lora", "lora"), ("lora", "unet")):
        folder = world.chain(outputs)
        expected = named(load_pipeline(find_model(str(folder)), "cpu", torch.float32).unet)
        assert_snippet(folder, expected, monkeypatch)
    folder = world.trained(world.base, "parts-lora", "lora", init_from=str(world.other / "unet"), vae=str(world.other))
    pipeline = load_pipeline(find_model(str(folder)), "cpu", torch.float32)
    made = assert_snippet(folder, named(pipeline.unet), monkeypatch)
    assert torch.equal(made.vae.decoder.conv_out.bias, pipeline.vae.decoder.conv_out.bias)
    card = (folder / "README.md").read_text()
    assert f"It also needs the U-Net `{world.other / 'unet'}`, the VAE `{world.other}`, loaded as above" in card
    assert "It also needs" not in (world.chain(("lora",)) / "README.md").read_text()


def assert_snippet(folder: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    made: dict[str, Any] = {}
    exec(code.rsplit("\n", 1)[0], made)
    loaded = named(made["pipeline"].unet)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    return made["pipeline"]


def test_kohyas_file_of_a_chain_contains_all_its_loras_for_the_root_pipeline(world: World):
    first = world.chain(("lora",))
    folder = world.trained(first, "lora-kohya", "lora", kohya=True, lora_rank=3)
    expected = load_component(find_model(str(folder))).state_dict()
    pipeline: Any = load_pipeline(find_model(str(world.base)), "cpu", torch.float32)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(folder, weight_name="kohya.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    loaded = pipeline.unet.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(loaded[name], value, atol=1e-6, rtol=1e-5)
    one = load_component(find_model(str(first))).state_dict()
    assert any((value - one[name]).abs().max() > 1e-2 for name, value in loaded.items())
    assert any((value - before[name]).abs().max() > 1e-2 for name, value in loaded.items())
    card = (folder / "README.md").read_text()
    assert f"`kohya.safetensors` combines the 2 LoRAs, for `{world.base}`" in card
