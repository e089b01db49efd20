"""Every kind of model is recognized by its settings, trained with the conditions it knows, and loaded again by diffusers."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import content
import diffusers
import prefloop
import pytest
import tiny
import torch
from PIL import Image
from prefloop.models.families import FAMILIES, PIPELINES, Family, family_of, family_of_class, known_family
from prefloop.models.noise import Diffusion
from prefloop.models.resolve import find_model
from prefloop.store import PairStore, UsageError
from prefloop.store.images import png_bytes
from prefloop.train import TrainConfig
from prefloop.train.stage import train


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    # folders whose names say nothing, or something wrong
    names = dict(zip(tiny.KINDS, ("a", "sdxl-b", "sd15-c", "turbo-d", "base-e"), strict=True))
    root = tmp_path_factory.mktemp("kinds")
    return {kind: tiny.saved(kind, root / name) for kind, name in names.items()}


@pytest.fixture(scope="session")
def _wide(tmp_path_factory: pytest.TempPathFactory, _empty: Path) -> Path:
    store = PairStore(shutil.copytree(_empty, tmp_path_factory.mktemp("wide") / "store"))
    content.add_labeler(store, "redder")
    for number in range(30):
        prompt = content.add_prompt(store, f"a red circle {number}")
        images = []
        for red in (20, 220):
            row = store.write_image(png_bytes(Image.new("RGB", (64, 48), (red, number, 40))), 64, 48)
            store.append("images", [row])
            images.append(row["image_id"])
        pair = content.add_pair(store, prompt, *images)
        content.add_label(store, pair, "redder", "a" if images[1] < images[0] else "b", margin=1.0)
    store.ingest()
    return store.path


@pytest.fixture
def wide(tmp_path: Path, _wide: Path) -> PairStore:
    """30 prompts with a pair of 64 x 48 images each, the redder one chosen."""
    return PairStore(shutil.copytree(_wide, tmp_path / "store"))


def diffusion(family: Family) -> Diffusion:
    noise = family.noise()
    assert isinstance(noise, Diffusion)
    return noise


def config(model: Path, folder: Path, **more: object) -> TrainConfig:
    settings = {"max_train_steps": 2, "train_batch_size": 2, "learning_rate": 1e-3, "lr_warmup_steps": 0, "cpu": True}
    return TrainConfig(output_dir=str(folder), labelers=("redder",), model=str(model), **(settings | more))  # type: ignore[arg-type]  # checked by the dataclass


def loaded(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder)


def test_the_family_follows_from_the_settings_and_never_from_the_name(models: dict[str, Path]):
    families = {kind: family_of(find_model(str(path))) for kind, path in models.items()}
    assert {kind: family.name for kind, family in families.items()} == {
        "sd15": "sd",
        "sd21v": "sd",
        "sdxl": "sdxl",
        "sdxl-refiner": "sdxl-refiner",
        "sdxl-turbo": "sdxl-turbo",
    }
    assert families["sd21v"].noise().prediction_type == "v_prediction"
    assert diffusion(families["sdxl"]).timesteps == tuple(range(1000))
    assert diffusion(families["sdxl-refiner"]).timesteps == tuple(range(200))
    assert diffusion(families["sdxl-turbo"]).timesteps == (249, 499, 749, 999)
    # 32 pixels from 4 latent values; the U-Net halves those once more
    assert {(family.resolution, family.vae_factor, family.sides_multiple) for family in families.values()} == {
        (32, 8, 16)
    }


def test_generating_and_training_take_a_model_for_the_same_family(models: dict[str, Path]):
    for path in models.values():
        model = find_model(str(path))
        known: Any = known_family(model)
        assert (known.name, known.usual) == (family_of(model).name, family_of(model).usual)


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        ("sd15", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, "sd-turbo"),
        ("sd21v", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, "sd"),  # predicts velocity
        ("sdxl", {"timestep_spacing": "trailing"}, "sdxl-turbo"),
        ("sdxl-turbo", {"timestep_spacing": "leading"}, "sdxl"),
        ("sdxl-turbo", {"prediction_type": "v_prediction"}, "sdxl"),
    ],
)
def test_a_distilled_model_is_recognized_by_its_noise_scheduler(
    models: dict[str, Path], tmp_path: Path, kind: str, settings: dict, name: str
):
    folder = shutil.copytree(models[kind], tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    family = family_of(find_model(str(folder)))
    assert family.name == name
    assert family.distilled == name.endswith("turbo")
    assert len(diffusion(family).timesteps) == (4 if family.distilled else 1000)


def test_settings_are_read_once_for_a_model(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    from prefloop.models.families import settings

    reads: list[Path] = []
    read = settings.read_settings
    monkeypatch.setattr(settings, "read_settings", lambda path: reads.append(path) or read(path))
    model = find_model(str(models["sdxl"]))
    for _ in range(2):
        family_of(model)
        known_family(model)
    assert len(reads) == len(set(reads)) > 4


def test_nothing_but_a_familys_file_asks_what_kind_of_model_it_is():
    """Tests, bench and shapes, which build models, may name the classes, and so may the published settings of models."""
    names = re.compile(r"\bis_xl\b|\bfamily\.(kind|name) (==|in)|UNet2DConditionModel|StableDiffusion\w*Pipeline|sdxl-")
    root = Path(prefloop.__file__).parent
    for folder in ("core", "store", "models", "generate", "relabel", "train", "eval"):
        for path in (root / folder).rglob("*.py"):
            if (
                path.parent != root / "models" / "families"
                and path.name != "published.py"
                and (name := names.search(path.read_text()))
            ):
                pytest.fail(f"{path.relative_to(root)} says {name[0]}")


def test_recognizing_a_family_imports_neither_torch_nor_diffusers():
    code = "import sys, prefloop.models.families; sys.exit(bool({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], env=content.environment()).returncode == 0


def test_the_automatic_dtype_is_half_precision_on_a_gpu_alone(models: dict[str, Path]):
    from prefloop.models.pipelines import dtype_of

    model = find_model(str(models["sdxl"]))
    assert dtype_of("auto", "cuda:0", model) is torch.float16
    assert dtype_of("auto", "cpu", model) is torch.float32
    assert dtype_of("bfloat16", "cpu", model) is torch.bfloat16


def test_every_family_file_names_its_pipelines_and_classes():
    for pipeline_class in PIPELINES:
        family = family_of_class(pipeline_class)
        assert family.pipeline_class == pipeline_class
        assert issubclass(getattr(diffusers, pipeline_class), diffusers.DiffusionPipeline)
        assert issubclass(getattr(diffusers, family.model_class), diffusers.ModelMixin)
        assert issubclass(getattr(diffusers, family.vae_class), diffusers.ModelMixin)
    assert len(PIPELINES) == sum(len(file.PIPELINES) for file in FAMILIES)  # none belongs to two


def test_only_turbos_last_timestep_has_no_signal(models: dict[str, Path]):
    for kind, path in models.items():
        model = find_model(str(path))
        last = float(diffusion(family_of(model)).scheduler.alphas_cumprod[-1])
        assert (last < 1e-6) == (kind == "sdxl-turbo"), kind


@pytest.mark.slow(reason="trains and loads small models")
def test_time_ids_are_the_true_size_and_crop(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    from prefloop.core.signals import StopSignal
    from prefloop.train.trainer import Trainer

    for kind, last in (("sdxl", [32.0, 32.0]), ("sdxl-refiner", [6.0])):
        output = tmp_path / kind
        output.mkdir()
        (batch,) = Trainer(config(models[kind], output), wide, StopSignal()).data.batch(0, 3)
        # 48 high and 64 wide; resized to 32 x 43 and cropped 5 or 6 columns from the left
        assert batch.conditions["time_ids"].shape == (6, 4 + len(last))
        assert batch.conditions["time_ids"][0].tolist() == [48.0, 64.0, 0.0, float(round((43 - 32) / 2)), *last]


@pytest.mark.slow(reason="trains and loads small models")
def test_a_batch_moves_all_its_tensors(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    from prefloop.core.signals import StopSignal
    from prefloop.train.trainer import Trainer

    (tmp_path / "out").mkdir()
    made = Trainer(config(models["sdxl"], tmp_path / "out", input_perturbation=0.1), wide, StopSignal())
    (batch,) = made.data.batch(0, 3)
    moved = batch.to(torch.device("meta"))
    assert moved.pairs == batch.pairs
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5  # chosen, rejected, timesteps, noise, input noise
    assert all(tensor.is_meta for tensor in [*tensors, *moved.conditions.values()])
    assert moved.conditions.keys() == {"prompt_embeds", "pooled_prompt_embeds", "time_ids"}
    assert batch.noise.device.type == "cpu"


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_every_kind_is_trained_and_then_loaded_by_diffusers(
    models: dict[str, Path], wide: PairStore, tmp_path: Path, kind: str, lora_rank: int
):
    output = tmp_path / "tuned"
    sample_steps = 2 if kind in ("sd15", "sdxl", "sdxl-turbo") else 0
    result = train(config(models[kind], output, lora_rank=lora_rank, sample_steps=sample_steps, n_samples=2), wide)
    assert result["steps"] == 2
    about = json.loads((output / "prefloop.json").read_text())
    assert about["optimizer"] == ("adafactor" if kind.startswith("sdxl") and not lora_rank else "adamw")
    base, tuned = loaded(models[kind]), loaded(models[kind] if lora_rank else output)
    if lora_rank:
        tuned.load_lora_weights(output)
    assert type(tuned) is type(base)
    sample = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    conditions: dict = {}
    width = tuned.unet.config.cross_attention_dim
    if kind.startswith("sdxl"):
        n = 5 if kind == "sdxl-refiner" else 6
        conditions["added_cond_kwargs"] = {"text_embeds": torch.ones(1, 24), "time_ids": torch.ones(1, n)}
    with torch.no_grad():
        predicted = [p.unet(sample, 100, torch.ones(1, 7, width), **conditions).sample for p in (base, tuned)]
    assert not torch.allclose(*predicted, atol=1e-5)  # it has learned something
    arguments: dict = {"image": Image.new("RGB", (32, 32))} if kind == "sdxl-refiner" else {"height": 32, "width": 32}
    arguments |= {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0)}
    assert tuned("a red circle", **arguments).images[0].size == (32, 32)
    if sample_steps:
        assert Image.open(output / "samples" / "step-000002.png").size[0] > 64


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("loss", ["sft", "ipo", "hinge", "mapo", "kto"])
def test_every_objective_trains(models: dict[str, Path], wide: PairStore, tmp_path: Path, loss: str):
    result = train(config(models["sdxl"], tmp_path / "tuned", loss=loss, lora_rank=2), wide)
    assert result["steps"] == 2
    with open(tmp_path / "tuned" / "validation.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["bin"] == "all"]
    assert [int(row["step"]) for row in rows] == [0, 2]
    assert rows[0]["chosen_error"] == rows[0]["ref_chosen_error"]
    assert rows[1]["chosen_error"] != rows[1]["ref_chosen_error"]


def test_an_empty_prompt_is_zeros_if_the_pipeline_says_so(models: dict[str, Path]):
    from prefloop.train.encoders import load_text_encoders

    for kind, zero in (("sdxl", True), ("sdxl-turbo", False), ("sd15", False)):
        model = find_model(str(models[kind]))
        encoded = load_text_encoders(model, family_of(model), torch.device("cpu"))(["", "a red circle"])
        assert (encoded["prompt_embeds"][0].abs().max() == 0) == zero, kind
        assert encoded["prompt_embeds"][1].abs().max() > 0
        assert tuple(encoded) == family_of(model).prompt_tensors
        assert ("pooled_prompt_embeds" in encoded) == kind.startswith("sdxl")


def test_prompt_embeddings_are_those_of_the_pipeline(models: dict[str, Path]):
    from prefloop.train.encoders import load_text_encoders

    model = find_model(str(models["sdxl"]))
    encoded = load_text_encoders(model, family_of(model), torch.device("cpu"))(["a red circle"])
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(models["sdxl"])
    ids = pipeline.tokenizer("a red circle", padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        one = pipeline.text_encoder(ids, output_hidden_states=True)
        two = pipeline.text_encoder_2(ids, output_hidden_states=True)
    # the second to last layer of both encoders, side by side; the pooled embedding of the second
    hidden = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
    assert torch.allclose(torch.stack(list(encoded["prompt_embeds"])), hidden)
    assert torch.allclose(torch.stack(list(encoded["pooled_prompt_embeds"])), two.text_embeds)


def test_a_pipeline_of_no_family_is_refused_with_the_names_of_those_that_can_be_trained(tmp_path: Path):
    folder = tmp_path / "lumina"
    folder.mkdir()
    index = {"_class_name": "Lumina2Pipeline", "transformer": ["diffusers", "Lumina2Transformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        UsageError, match=r"lumina is a Lumina2Pipeline, which cannot be trained; .* 1 and 2 .* XL"
    ) as raised:
        family_of(find_model(str(folder)))
    assert "\n" not in str(raised.value)
    assert known_family(find_model(str(folder))) is None  # images can still be generated with it


def test_an_inpainting_model_is_refused(models: dict[str, Path], tmp_path: Path):
    folder = shutil.copytree(models["sd15"], tmp_path / "inpaint")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
    with pytest.raises(UsageError, match="takes 9 channels and returns 4"):
        family_of(find_model(str(folder)))


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("output", ["unet", "pipeline", "lora"])
def test_every_output_is_a_model_to_generate_with_and_to_train_on(
    models: dict[str, Path], wide: PairStore, tmp_path: Path, output: str
):
    from prefloop.models.loading import load_component
    from prefloop.models.pipelines import load_pipeline

    rank = 2 if output == "lora" else 0
    first = tmp_path / "first"
    train(config(models["sdxl"], first, format=output, lora_rank=rank, kohya=output == "lora"), wide)
    assert (first / "README.md").read_text().startswith("---")
    assert (first / "kohya.safetensors").exists() == (output == "lora")
    assert (first / "model_index.json").exists() == (output == "pipeline")
    model = find_model(str(first))
    pipeline: Any = load_pipeline(model, "cpu", torch.float32)
    if output == "lora":
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    again = load_component(model).state_dict()
    generating = pipeline.unet.state_dict()
    assert again.keys() == generating.keys()
    assert all(torch.allclose(again[name], value, atol=1e-6) for name, value in generating.items())
    base = load_component(find_model(str(models["sdxl"]))).state_dict()
    assert any(not torch.equal(again[name], value) for name, value in base.items())
    assert family_of(model).name == "sdxl"
    assert train(config(first, tmp_path / "second"), wide)["steps"] == 2


@pytest.mark.slow(reason="trains and loads small models")
def test_kohyas_format_has_the_same_weights_as_diffusers(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    output = tmp_path / "tuned"
    train(config(models["sdxl"], output, lora_rank=2, lora_alpha=6.0, kohya=True), wide)
    predicted = []
    for name in ("pytorch_lora_weights.safetensors", "kohya.safetensors"):
        pipeline: Any = loaded(models["sdxl"])
        pipeline.load_lora_weights(output, weight_name=name)
        generator = torch.Generator().manual_seed(0)
        added = {"text_embeds": torch.ones(1, 24), "time_ids": torch.ones(1, 6)}
        with torch.no_grad():
            sample = torch.randn(1, 4, 4, 4, generator=generator)
            predicted.append(pipeline.unet(sample, 100, torch.ones(1, 7, 40), added_cond_kwargs=added).sample)
    assert torch.allclose(*predicted, atol=1e-5)


@pytest.mark.slow(reason="trains and loads small models")
def test_another_vae_and_another_unet_can_be_named(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    output = tmp_path / "tuned"
    settings = {"vae": str(models["sd15"] / "vae"), "init_from": str(models["sd15"] / "unet"), "max_train_steps": 1}
    train(config(models["sd21v"], output, lora_rank=2, **settings), wide)
    assert json.loads((output / "prefloop.json").read_text())["config"]["init_from"] == settings["init_from"]
    from prefloop.store import PrefloopError

    with pytest.raises(PrefloopError, match="cannot find the VAE 'nowhere'"):
        train(config(models["sd15"], tmp_path / "other", vae="nowhere"), wide)


@pytest.mark.slow(reason="trains and loads small models")
def test_a_tracker_gets_what_the_tables_get(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "tuned"
    train(config(models["sd15"], output, report_to="tensorboard"), wide)
    (events,) = {path.parent for path in output.rglob("events.out.tfevents*") if "prefloop" in path.parent.name}
    kept = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "validation/implicit_accuracy", "validation/bin 0/margin"} <= set(kept.Tags()["scalars"])


def test_sample_images_of_a_refiner_are_refused_before_the_first_step(
    models: dict[str, Path], wide: PairStore, tmp_path: Path
):
    with pytest.raises(UsageError, match="sample-steps"):
        train(config(models["sdxl-refiner"], tmp_path / "tuned", lora_rank=2, sample_steps=1), wide)
    assert not list((tmp_path / "tuned").glob("checkpoint-*"))
