"""Every kind of model is known by its configs, told what it was trained on, trained, and loaded again by diffusers."""

import csv
import json
from pathlib import Path
from typing import Any

import content
import diffusers
import pytest
import tiny
import torch
from PIL import Image
from prefloop.models.family import family_of, load_noise
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


@pytest.fixture
def wide(store: PairStore) -> PairStore:
    """30 prompts with a pair of 64 x 48 pictures each, the redder one chosen."""
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
    return store


def config(model: Path, folder: Path, **more: object) -> TrainConfig:
    settings = {"max_train_steps": 2, "train_batch_size": 2, "learning_rate": 1e-3, "lr_warmup_steps": 0, "cpu": True}
    return TrainConfig(output_dir=str(folder), labelers=("redder",), model=str(model), **(settings | more))  # type: ignore[arg-type]  # checked by the dataclass


def loaded(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder)


def test_the_kind_follows_from_the_configs_and_never_from_the_name(models: dict[str, Path]):
    found = {kind: family_of(find_model(str(path))) for kind, path in models.items()}
    assert {kind: family.kind for kind, family in found.items()} == {
        "sd15": "sd",
        "sd21v": "sd",
        "sdxl": "sdxl",
        "sdxl-refiner": "sdxl-refiner",
        "sdxl-turbo": "sdxl-turbo",
    }
    assert found["sd21v"].prediction_type == "v_prediction"
    assert found["sdxl"].timesteps == tuple(range(1000))
    assert found["sdxl-refiner"].timesteps == tuple(range(200))
    assert found["sdxl-turbo"].timesteps == (249, 499, 749, 999)
    assert {family.resolution for family in found.values()} == {32}


def test_the_noise_of_turbo_ends_without_signal_and_that_of_the_others_does_not(models: dict[str, Path]):
    for kind, path in models.items():
        model = find_model(str(path))
        last = float(load_noise(model, family_of(model)).alphas_cumprod[-1])
        assert (last < 1e-6) == (kind == "sdxl-turbo"), kind


def test_time_ids_tell_the_truth_about_size_and_cut(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    from prefloop.core.signals import StopSignal
    from prefloop.train.trainer import Trainer

    for kind, rest in (("sdxl", [32.0, 32.0]), ("sdxl-refiner", [6.0])):
        output = tmp_path / kind
        output.mkdir()
        (batch,) = Trainer(config(models[kind], output), wide, StopSignal()).data.batch(0, 3)
        assert batch.time_ids is not None
        # 48 high and 64 wide; scaled to 32 x 43 and cut 5 or 6 columns from the left
        assert batch.time_ids.shape == (6, 4 + len(rest))
        assert batch.time_ids[0].tolist() == [48.0, 64.0, 0.0, float(round((43 - 32) / 2)), *rest]


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_every_kind_is_trained_and_loaded_by_diffusers_again(
    models: dict[str, Path], wide: PairStore, tmp_path: Path, kind: str, lora_rank: int
):
    output = tmp_path / "tuned"
    shows = 2 if kind in ("sd15", "sdxl", "sdxl-turbo") else 0
    result = train(config(models[kind], output, lora_rank=lora_rank, sample_steps=shows, n_samples=2), wide)
    assert result["steps"] == 2
    told = json.loads((output / "prefloop.json").read_text())
    assert told["optimizer"] == ("adafactor" if kind.startswith("sdxl") and not lora_rank else "adamw")
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
        drawn = [p.unet(sample, 100, torch.ones(1, 7, width), **conditions).sample for p in (base, tuned)]
    assert not torch.allclose(*drawn, atol=1e-5)  # it has learned something
    asked: dict = {"image": Image.new("RGB", (32, 32))} if kind == "sdxl-refiner" else {"height": 32, "width": 32}
    asked |= {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0)}
    assert tuned("a red circle", **asked).images[0].size == (32, 32)
    if shows:
        assert Image.open(output / "samples" / "step-000002.png").size[0] > 64


@pytest.mark.parametrize("loss", ["sft", "ipo", "hinge", "mapo", "kto"])
def test_every_objective_trains(models: dict[str, Path], wide: PairStore, tmp_path: Path, loss: str):
    result = train(config(models["sdxl"], tmp_path / "tuned", loss=loss, lora_rank=2), wide)
    assert result["steps"] == 2
    with open(tmp_path / "tuned" / "validation.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["bin"] == "all"]
    assert [int(row["step"]) for row in rows] == [0, 2]
    assert rows[0]["chosen_error"] == rows[0]["ref_chosen_error"]
    assert rows[1]["chosen_error"] != rows[1]["ref_chosen_error"]


def test_no_prompt_is_zeros_where_the_pipeline_says_so(models: dict[str, Path]):
    from prefloop.train.policy import load_text_encoders

    for kind, zero in (("sdxl", True), ("sdxl-turbo", False), ("sd15", False)):
        model = find_model(str(models[kind]))
        found = load_text_encoders(model, family_of(model), torch.device("cpu"))(["", "a red circle"])
        assert (found["hidden"][0].abs().max() == 0) == zero, kind
        assert found["hidden"][1].abs().max() > 0
        assert ("pooled" in found) == kind.startswith("sdxl")


def test_the_texts_are_what_the_pipeline_would_encode(models: dict[str, Path]):
    from prefloop.train.policy import load_text_encoders

    model = find_model(str(models["sdxl"]))
    found = load_text_encoders(model, family_of(model), torch.device("cpu"))(["a red circle"])
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(models["sdxl"])
    ids = pipeline.tokenizer("a red circle", padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        one = pipeline.text_encoder(ids, output_hidden_states=True)
        two = pipeline.text_encoder_2(ids, output_hidden_states=True)
    # the last layer but one of both encoders, side by side; the pooled text of the second
    assert torch.allclose(found["hidden"], torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1))
    assert torch.allclose(found["pooled"], two.text_embeds)


def test_a_pipeline_without_a_unet_is_refused_by_name(tmp_path: Path):
    folder = tmp_path / "flux"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "transformer": ["a", "b"]}))
    with pytest.raises(UsageError, match="FluxPipeline"):
        family_of(find_model(str(folder)))


def test_a_model_that_paints_into_an_image_is_refused(models: dict[str, Path], tmp_path: Path):
    import shutil

    folder = shutil.copytree(models["sd15"], tmp_path / "inpaint")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
    with pytest.raises(UsageError, match="9 channels"):
        family_of(find_model(str(folder)))


@pytest.mark.parametrize("output", ["unet", "pipeline", "lora"])
def test_every_output_is_a_model_to_draw_with_and_to_train_on(
    models: dict[str, Path], wide: PairStore, tmp_path: Path, output: str
):
    from prefloop.models.pipelines import load_pipeline
    from prefloop.train.policy import load_unet

    rank = 2 if output == "lora" else 0
    first = tmp_path / "first"
    train(config(models["sdxl"], first, output=output, lora_rank=rank, kohya=output == "lora"), wide)
    assert (first / "README.md").read_text().startswith("---")
    assert (first / "kohya.safetensors").exists() == (output == "lora")
    assert (first / "model_index.json").exists() == (output == "pipeline")
    model = find_model(str(first))
    pipeline: Any = load_pipeline(model, "cpu", torch.float32)
    if output == "lora":
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    again = load_unet(model).state_dict()
    drawn_with = pipeline.unet.state_dict()
    assert again.keys() == drawn_with.keys()
    assert all(torch.allclose(again[name], value, atol=1e-6) for name, value in drawn_with.items())
    base = load_unet(find_model(str(models["sdxl"]))).state_dict()
    assert any(not torch.equal(again[name], value) for name, value in base.items())
    assert family_of(model).kind == "sdxl"
    assert train(config(first, tmp_path / "second"), wide)["steps"] == 2


def test_kohyas_layout_holds_what_diffusers_layout_holds(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    output = tmp_path / "tuned"
    train(config(models["sdxl"], output, lora_rank=2, lora_alpha=6.0, kohya=True), wide)
    drawn = []
    for name in ("pytorch_lora_weights.safetensors", "kohya.safetensors"):
        pipeline: Any = loaded(models["sdxl"])
        pipeline.load_lora_weights(output, weight_name=name)
        generator = torch.Generator().manual_seed(0)
        told = {"text_embeds": torch.ones(1, 24), "time_ids": torch.ones(1, 6)}
        with torch.no_grad():
            sample = torch.randn(1, 4, 4, 4, generator=generator)
            drawn.append(pipeline.unet(sample, 100, torch.ones(1, 7, 40), added_cond_kwargs=told).sample)
    assert torch.allclose(*drawn, atol=1e-5)


def test_another_vae_and_another_unet_can_be_named(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    output = tmp_path / "tuned"
    settings = {"vae": str(models["sd15"] / "vae"), "init_from": str(models["sd15"] / "unet"), "max_train_steps": 1}
    train(config(models["sd21v"], output, lora_rank=2, **settings), wide)
    assert json.loads((output / "prefloop.json").read_text())["config"]["init_from"] == settings["init_from"]
    from prefloop.store import PrefloopError

    with pytest.raises(PrefloopError, match="there is no VAE 'nowhere'"):
        train(config(models["sd15"], tmp_path / "other", vae="nowhere"), wide)


def test_a_tracker_gets_what_the_tables_get(models: dict[str, Path], wide: PairStore, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "tuned"
    train(config(models["sd15"], output, report_to="tensorboard"), wide)
    (events,) = {path.parent for path in output.rglob("events.out.tfevents*") if "prefloop" in path.parent.name}
    kept = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "validation/implicit_accuracy", "validation/bin 0/margin"} <= set(kept.Tags()["scalars"])


def test_pictures_of_a_refiner_are_refused_before_the_first_step(
    models: dict[str, Path], wide: PairStore, tmp_path: Path
):
    with pytest.raises(UsageError, match="sample-steps"):
        train(config(models["sdxl-refiner"], tmp_path / "tuned", lora_rank=2, sample_steps=1), wide)
    assert not list((tmp_path / "tuned").glob("checkpoint-*"))
