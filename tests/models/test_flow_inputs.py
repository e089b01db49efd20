"""Flow-matching models and bad input: one line that names the thing and the cure, and nothing lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import StableDiffusion3Pipeline
from prefloop.generate.config import GenerateConfig
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import plan
from prefloop.models.loading import load_component
from prefloop.models.resolve import find_model
from prefloop.store import IntegrityError, PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.config import TrainConfig as Config
from prefloop.train.stage import train


@pytest.fixture(scope="module")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved("sd35", tmp_path_factory.mktemp("flow") / "sd35")


@pytest.fixture
def flow(config: TrainConfig, sd35: Path) -> TrainConfig:
    return replace(config, model=str(sd35), lora_rank=2, max_train_steps=1)


def sampler(model: Path, **settings: Any) -> ImageSampler:
    config = GenerateConfig(model=str(model), guidance_scale=1.0, num_inference_steps=1)
    return ImageSampler(find_model(str(model)), replace(config, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "unet"}, r"sd35, a StableDiffusion3Pipeline, has a transformer; give --format transformer"),
        ({"kohya": True}, "kohya is a format for the LoRAs of U-Nets; .*sd35 has a transformer"),
        ({"min_snr_gamma": 5.0}, "flow matching weighs timesteps by --timestep-density"),
        ({"resolution": 40}, "resolution must be a multiple of 16 for a StableDiffusion3Pipeline, got 40"),
        (
            {"lora_targets": ("to_z",)},
            "no layer of the SD3Transformer2DModel has a name that ends in to_z; linear layers end in .*to_q",
        ),
    ],
)
def test_settings_for_another_kind_of_model_are_refused_before_anything_is_written(
    flow: TrainConfig, labelled: PairStore, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(replace(flow, **settings), labelled)
    assert not (Path(flow.output_dir) / "prefloop.json").exists()


def test_sigma_is_only_for_flow_matching(config: TrainConfig, labelled: PairStore) -> None:
    for settings in ({"timestep_density": "uniform"}, {"timestep_shift": "3"}):
        with pytest.raises(UsageError, match=r"are for flow-matching models; .* is a StableDiffusionPipeline"):
            train(replace(config, **settings), labelled)
    for shift in ("-1", "nan", "inf", "much"):
        with pytest.raises(UsageError, match="timestep-shift must be model, none or a number above 0"):
            Config(output_dir="out", labelers=("me",), timestep_shift=shift)
    with pytest.raises(UsageError, match="logit-normal"):
        Config(output_dir="out", labelers=("me",), timestep_density="normal")


@pytest.mark.slow(reason="trains and loads small models")
def test_a_model_without_a_needed_text_encoder_cannot_be_trained_and_one_without_t5_can(
    flow: TrainConfig, labelled: PairStore, sd35: Path, tmp_path: Path
) -> None:
    def without(*parts: str) -> Path:
        folder = Path(shutil.copytree(sd35, tmp_path / f"without-{parts[0]}"))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {part: [None, None] for part in parts}))
        return folder

    with pytest.raises(UsageError, match="cannot be trained: it was saved without its text_encoder_2"):
        train(replace(flow, model=str(without("text_encoder_2", "tokenizer_2"))), labelled)
    assert train(replace(flow, model=str(without("text_encoder_3", "tokenizer_3"))), labelled)["steps"] == 1


def test_sides_that_the_model_cannot_generate_are_refused(sd35: Path) -> None:
    with pytest.raises(UsageError, match="resolution must be a multiple of 16 for a StableDiffusion3Pipeline, got 40"):
        sampler(sd35, resolution=40)


def test_half_precision_that_may_overflow_is_warned_about(sd35: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler(sd35, dtype="float16")
    assert "sd35 was made for bfloat16 and may overflow in float16" in capsys.readouterr().err
    sampler(sd35, dtype="bfloat16")
    assert "overflow" not in capsys.readouterr().err


def test_a_lora_of_another_family_names_both(lora: Path, sd35: Path) -> None:
    model = replace(find_model(str(lora)), base=find_model(str(sd35)))
    with pytest.raises(
        IntegrityError, match=r"tuned/.* is a LoRA for a U-Net, but .*sd35, a Stab.*, has a transformer"
    ):
        load_component(model)


def test_models_of_two_families_are_not_compared(
    store: PairStore, sd35: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    from prefloop.eval.config import EvalConfig
    from prefloop.eval.stage import evaluate

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    settings = EvalConfig(models=(str(sd35),), baseline=str(tiny_pipeline), prompts=str(prompts), scorers=("oracle",))
    with pytest.raises(UsageError, match="they differ in kind, sd3 against sd"):
        evaluate(settings, store)


def test_generate_makes_the_images_that_the_pipeline_makes(sd35: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\nblue\n")
    config = GenerateConfig(
        model=str(sd35),
        prompts=str(prompts),
        images_per_prompt=1,
        num_inference_steps=2,
        guidance_scale=3.0,
        resolution=32,
        negative_prompt="green",
        batch_size=1,
    )
    planned = plan(config, None)
    ours = ImageSampler(planned.model, planned.config)
    generated = [
        pair for batch, images in ours.batches(planned.generations) for pair in zip(batch, images, strict=True)
    ]
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(sd35)
    pipeline.set_progress_bar_config(disable=True)
    from prefloop.core.ids import noise_seed

    for item, image in generated:
        alone = pipeline(
            item.prompt,
            negative_prompt="green",
            num_inference_steps=2,
            guidance_scale=3.0,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(noise_seed(item.prompt, config.seed, item.index)),
        ).images[0]
        assert image.tobytes() == alone.tobytes()
    long = "word " * 300
    assert ours.n_truncated(["a red circle", "a" * 100, long]) == 1  # T5 keeps 256 tokens, CLIP here 16


def test_steps_and_guidance_are_those_of_the_model_card(sd35: Path, tmp_path: Path) -> None:
    from prefloop.generate.defaults import usual_settings

    assert usual_settings(find_model(str(sd35))) == (40, 4.5)
    assert usual_settings(find_model(str(tiny.saved("sd3", tmp_path / "sd3")))) == (28, 7.0)


def test_a_noise_scheduler_of_another_kind_of_model_is_refused(sd35: Path, tiny_pipeline: Path) -> None:
    for scheduler in ("ddim", "euler", "dpm++"):
        with pytest.raises(UsageError, match=r"does not fit a StableDiffusion3Pipeline .* trained by flow matching"):
            sampler(sd35, scheduler=scheduler)
    with pytest.raises(UsageError, match=r"does not fit a StableDiffusionPipeline .*: it has no scale_model_input"):
        sampler(tiny_pipeline, scheduler="FlowMatchEulerDiscreteScheduler")
    heun = sampler(sd35, scheduler="FlowMatchHeunDiscreteScheduler")
    assert heun.description["scheduler"] == "FlowMatchHeunDiscreteScheduler"
