"""Nothing changes an image after it is generated: safety checkers and watermarks are off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from prefloop.eval import EvalConfig
from prefloop.eval.stage import evaluate
from prefloop.generate import GenerateConfig
from prefloop.generate.stage import generate
from prefloop.models.text_to_image import without_filters
from prefloop.store import PairStore, load_image
from prefloop.train import TrainConfig
from prefloop.train.stage import train
from transformers import CLIPConfig, CLIPImageProcessor


@pytest.fixture(scope="module")
def prudish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with a safety checker that flags everything, as Stable Diffusion 1.5 on the hub has one."""
    layers = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(
        projection_dim=8, vision_config={**layers, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    )
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2)  # the cosine of any image is above this threshold
    parts: Any = tiny.pipeline("sd15").components
    parts |= {"safety_checker": checker, "feature_extractor": CLIPImageProcessor(size=32, crop_size=32)}
    folder = tmp_path_factory.mktemp("models") / "prudish"
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


def is_black(image: Image.Image) -> bool:
    return not np.asarray(image.convert("RGB")).any()


def test_diffusers_itself_gives_black_images(prudish: Path):
    pipeline: Any = DiffusionPipeline.from_pretrained(prudish)
    assert is_black(pipeline("a red circle", num_inference_steps=1).images[0])


@pytest.mark.slow(reason="scores in several runs")
def test_no_stage_blacks_out_images(
    labelled: PairStore, config: TrainConfig, prudish: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    prompts = str(tmp_path / "prompts.txt")
    generate(GenerateConfig(model=str(prudish), prompts=prompts, images_per_prompt=2, num_inference_steps=1), labelled)
    train(
        replace(config, model=str(prudish), max_train_steps=1, train_batch_size=1, sample_steps=1, n_samples=1),
        labelled,
    )
    scorers = ("little_scorers:Redness",)
    eval_config = EvalConfig(
        models=(config.output_dir,), prompts=prompts, num_inference_steps=1, scorers=scorers, n_resamples=100
    )
    evaluate(eval_config, labelled)
    paths = [path for (path,) in labelled.rows("select path from image_files join generations using (image_id)")]
    assert len(paths) >= 4
    assert not any(is_black(load_image(labelled.path / path)) for path in paths)
    reference = Image.open(Path(config.output_dir) / "samples" / "reference-0.png")
    assert not is_black(reference)
    assert not [warning for warning in recwarn if "safety" in str(warning.message)]


def test_the_watermark_of_sdxl_is_off_whatever_is_installed():
    assert without_filters(StableDiffusionXLPipeline) == {"add_watermarker": False}
    off = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
    assert without_filters(StableDiffusionPipeline) == off
