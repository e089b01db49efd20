"""What a VAE decodes in can be chosen apart from what the model runs in, and is part of what a generation is."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKL
from prefloop.cli import app
from prefloop.core.errors import UsageError
from prefloop.eval.config import EvalConfig
from prefloop.generate.config import GenerateConfig
from prefloop.generate.decode import SparingDecoder, decode_sparingly
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import Plan, plan
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> GenerateConfig:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    prompts = str(tmp_path / "prompts.txt")
    return GenerateConfig(
        model=str(tiny_pipeline),
        prompts=prompts,
        images_per_prompt=1,
        num_inference_steps=1,
        batch_size=1,
        device="cpu",
    )


def drawn(planned: Plan) -> tuple[np.ndarray, list[tuple[torch.dtype, torch.dtype]]]:
    """Images (N, H, W, 3) in 0..255, and for each batch what the U-Net and what the decoder of the VAE ran in."""
    sampler = ImageSampler(planned.model, planned.config)
    ran: dict[str, list[torch.dtype]] = {"unet": [], "vae": []}
    for name, part in (("unet", sampler.pipeline.unet), ("vae", sampler.pipeline.vae.decoder)):
        part.register_forward_pre_hook(lambda _, inputs, name=name: ran[name].append(inputs[0].dtype))
    images = [np.asarray(image, np.int64) for _, some in sampler.batches(planned.missing) for image in some]
    return np.stack(images), list(zip(ran["unet"], ran["vae"], strict=True))


def test_the_vae_runs_in_its_own_dtype_and_images_change_by_its_rounding(config: GenerateConfig):
    calm, ran = drawn(plan(config, None))
    assert ran == [(torch.float32, torch.float32)] * 2
    rounded, ran = drawn(plan(replace(config, vae_dtype="bfloat16"), None))
    assert ran == [(torch.float32, torch.bfloat16)] * 2
    # bfloat16 keeps 8 bits: a value near 1 is rounded by up to 1/256 in each of the last layers
    assert 0 < np.abs(calm - rounded).max() <= 8
    again, ran = drawn(plan(replace(config, vae_dtype="float32"), None))
    assert ran == [(torch.float32, torch.float32)] * 2
    assert np.array_equal(again, calm)


def test_sdxl_decodes_in_float32_by_itself_and_in_float16_if_told(config: GenerateConfig, tmp_path: Path):
    half = replace(config, model=str(tiny.saved("sdxl", tmp_path / "sdxl")), dtype="float16")
    assert drawn(plan(half, None))[1] == [(torch.float16, torch.float32)] * 2
    # its pipeline casts the VAE to float32 before each batch
    assert drawn(plan(replace(half, vae_dtype="float16"), None))[1] == [(torch.float16, torch.float16)] * 2


def test_the_dtype_of_the_vae_is_part_of_a_generation_unless_it_is_left_to_the_pipeline(config: GenerateConfig):
    plans = [plan(replace(config, vae_dtype=name), None) for name in ("auto", "float32", "bfloat16")]
    assert [planned.config.sampling().get("vae_dtype") for planned in plans] == [None, "float32", "bfloat16"]
    assert "vae_dtype" not in plans[0].config.sampling()  # ids of earlier generations stay
    assert len({item.generation_id for planned in plans for item in planned.generations}) == 6
    compared = EvalConfig(models=("shapes",), vae_dtype="bfloat16", num_inference_steps=1, guidance_scale=1.0)
    assert compared.generate_config("shapes").sampling()["vae_dtype"] == "bfloat16"
    with pytest.raises(UsageError, match="unknown vae-dtype 'half'; choose from auto, float32"):
        replace(config, vae_dtype="half")


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux2-klein", "qwen-image", "sana"])
def test_the_vae_of_each_kind_of_model_decodes_in_another_dtype_to_float32(kind: str):
    vae = tiny.pipeline(kind).vae
    channels = vae.config.z_dim if "z_dim" in vae.config else vae.config.latent_channels
    shape = (2, channels, 1, 4, 4) if kind == "qwen-image" else (2, channels, 4, 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latents).sample
        decoder = SparingDecoder(vae, torch.bfloat16)
        rounded, (pair,) = decoder(latents).sample, decoder(latents, return_dict=False)
    assert vae.dtype == torch.bfloat16
    assert rounded.dtype == pair.dtype == torch.float32
    assert torch.equal(rounded, pair)
    assert 0 < (rounded - whole).abs().max() < 0.05 * whole.abs().max()


def test_a_vae_that_overflows_in_float16_ends_in_one_line_and_the_cure_helps(config: GenerateConfig, tmp_path: Path):
    model = shutil.copytree(config.model, tmp_path / "large")
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    # each below 65504, the largest number of float16; the sum over 8 channels and 9 places is not
    weights["decoder.conv_out.weight"] = torch.full_like(weights["decoder.conv_out.weight"], 6e4)
    save_file(weights, path, {"format": "pt"})
    words = ["generate", "--model", str(model), "--prompts", str(config.prompts), "--images-per-prompt", "1"]
    words += ["--num-inference-steps", "1", "--device", "cpu", "--store", str(tmp_path / "pairs"), "--vae-dtype"]
    ended = CliRunner().invoke(app, [*words, "float16"])
    assert ended.exit_code == 6, ended.output
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("prefloop: ")]
    assert line == (
        "prefloop: the VAE overflows in float16, and the images would be black; give --vae-dtype bfloat16 or float32"
    )
    for dtype in ("bfloat16", "float32"):
        assert CliRunner().invoke(app, [*words, dtype]).exit_code == 0


def test_a_model_that_gives_black_images_ends_in_one_line_and_stores_none(config: GenerateConfig, tmp_path: Path):
    model = shutil.copytree(config.model, tmp_path / "diverged")
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    words = ["generate", "--model", str(model), "--prompts", str(config.prompts), "--num-inference-steps", "1"]
    ended = CliRunner().invoke(app, [*words, "--device", "cpu", "--store", str(tmp_path / "pairs")])
    assert ended.exit_code == 6, ended.output
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("prefloop: ")]
    assert line.startswith("prefloop: the model's latents are not finite, and the images would be black; in float16")
    assert not list((tmp_path / "pairs" / "images").glob("*/*"))


def test_one_black_image_of_a_batch_is_told_and_the_others_stay_as_they_are(capsys: pytest.CaptureFixture[str]):
    vae: Any = AutoencoderKL(**tiny.CODER)
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latents).sample
        latents[1, 2, 3, 0] = float("inf")
        decoded = SparingDecoder(vae)(latents).sample
    assert torch.equal(decoded[::2], whole[::2])
    assert capsys.readouterr().err.startswith(
        "1 of 3 images are black, because their latents are not finite; in float16"
    )


def test_a_pipeline_without_a_vae_takes_no_dtype_for_one():
    class Pixels:
        vae: Any = None

    decode_sparingly(Pixels())
    with pytest.raises(UsageError, match="a Pixels has no VAE that decodes; leave --vae-dtype out"):
        decode_sparingly(Pixels(), torch.bfloat16)
