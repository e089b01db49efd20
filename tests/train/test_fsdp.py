"""A model split over two real processes, connected by gloo, trains as one process does that holds all of it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageChops
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.stage import train
from run_options import decided
from safetensors.torch import load_file
from two_processes import die_while_training, split_gradients, two_processes

pytestmark = [
    pytest.mark.slow(reason="processes load torch and connect"),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes would share a GPU"),
]

OPTIONS = {
    "max_train_samples": 9,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_train_steps": 3,
    "reference_draws": 2,
    "max_grad_norm": 0.01,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 3,
}


def words(config: TrainConfig, store: Path) -> list[object]:
    named: list[object] = ["train", "--fsdp", "--labeler", "redder", "--store", store, "--json"]
    for name in (
        "model",
        "output_dir",
        "reference_draws",
        "max_grad_norm",
        "ema_decay",
        "sample_steps",
        "n_samples",
        "max_train_samples",
    ):
        if getattr(config, name) is not None:
            named += [f"--{name.replace('_', '-')}", getattr(config, name)]
    named += ["--gradient-checkpointing"] * bool(config.gradient_checkpointing)
    named += ["--checkpointing-steps", config.checkpointing_steps, "--checkpoints-total-limit", 3]
    return [*named, *decided(config)]


def kept(folder: str, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights and the other parts of a checkpoint."""
    path = Path(folder) / f"checkpoint-{step}"
    (weights,) = path.glob("*/diffusion_pytorch_model.safetensors")
    return load_file(weights), torch.load(path / "optimizer.pt", weights_only=True)


def assert_same_within_rounding(alone: TrainConfig, split: TrainConfig, tolerance: float) -> None:
    """The metrics of each step, averaged over the processes, and the weights and moments of the last checkpoint."""
    (weights, parts), (weights_2, parts_2) = kept(alone.output_dir, 3), kept(split.output_dir, 3)
    assert parts["recent"].shape == (1, 3, 8)
    assert parts_2["recent"].shape == (2, 3, 8)
    # of metrics.csv: the loss first, and last the norm before clipping, which is 0.01 after it
    steps, steps_2 = (recent.mean(dim=0) for recent in (parts["recent"], parts_2["recent"]))
    assert torch.allclose(steps[:, 0], steps_2[:, 0], rtol=tolerance)
    assert torch.allclose(steps[:, -1], steps_2[:, -1], rtol=tolerance)
    assert steps[:, -1].min() > 1
    assert weights.keys() == weights_2.keys()
    for name, weight in weights.items():
        assert torch.allclose(weight, weights_2[name], rtol=0, atol=2e-5), name  # a step changes them by up to 1e-3
    moments, moments_2 = parts["optimizer"]["state"], parts_2["optimizer"]["state"]
    n_fixed = sum("pos_embed.pos_embed" in name for name in weights)  # SD3's positions are no parameters
    assert moments.keys() == moments_2.keys() == set(range(len(weights) - n_fixed))
    for number, moment in moments.items():
        assert moment["step"] == moments_2[number]["step"] == 3
        assert moment["exp_avg"].shape == moments_2[number]["exp_avg"].shape
    for name in ("exp_avg", "exp_avg_sq"):
        one, two = (torch.cat([of[n][name].ravel() for n in sorted(of)]) for of in (moments, moments_2))
        assert (one - two).norm() < 10 * tolerance * one.norm(), name


def test_a_split_unet_trains_as_one_process_does_and_a_killed_run_goes_on_to_the_bit(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    alone = PairStore(shutil.copytree(labelled.path, tmp_path / "alone"))
    config = replace(config, **OPTIONS, ema_decay=0.5, sample_steps=3, n_samples=1, gradient_checkpointing=True)
    # four micro-batches of one process are two of each of two; 18 cached draws are 9 batches, so one process idles for one
    train(replace(config, gradient_accumulation_steps=4), alone)
    split = replace(config, output_dir=str(tmp_path / "split"))
    codes, printed = two_processes(words(split, labelled.path), tmp_path)
    assert codes == [0, 0], printed
    assert printed[1] == ""  # one prints
    assert_same_within_rounding(config, split, 2e-5)
    # the result is the average, as diffusers loads it, with nothing that says it was split
    averages = [UNet2DConditionModel.from_pretrained(each.output_dir, subfolder="unet") for each in (config, split)]
    for name, weight in averages[0].state_dict().items():
        assert torch.allclose(weight, averages[1].state_dict()[name], rtol=0, atol=2e-5), name
    trained = kept(split.output_dir, 3)[0]
    assert max((trained[name] - weight).abs().max() for name, weight in averages[1].named_parameters()) > 5e-5
    configs = [(Path(each.output_dir) / "unet" / "config.json").read_text() for each in (config, split)]
    assert configs[0] == configs[1]
    assert StableDiffusionPipeline.from_pretrained(split.output_dir).unet.config.sample_size == 4
    sheets = [Image.open(Path(each.output_dir) / "samples" / "step-000003.png") for each in (config, split)]
    differences: Any = ImageChops.difference(*sheets).getextrema()
    assert max(high for _, high in differences) <= 2  # of 255

    goes_on = replace(config, output_dir=str(tmp_path / "killed"))
    codes, printed = two_processes(words(goes_on, labelled.path), tmp_path, die_while_training)
    assert codes == [1, -9], printed
    assert "another process of this training has ended" in printed[0]
    # errors of the reference that are lost are computed again, by weights like those at the beginning
    (tmp_path / "killed" / ".run" / "validation_reference.safetensors").write_bytes(b"damaged")
    for folder in (labelled.path / "cache").glob("reference-*"):
        shutil.rmtree(folder)
    codes, printed = two_processes(words(goes_on, labelled.path), tmp_path)
    assert codes == [0, 0], printed
    assert "resuming from step 1" in printed[0]
    for name in (
        "checkpoint-3/unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "metrics.csv",
    ):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "split" / name).read_bytes(), name
    assert (tmp_path / "killed" / "validation.csv").read_text() == (tmp_path / "split" / "validation.csv").read_text()
    moments, moments_2 = (kept(str(tmp_path / name), 3)[1]["optimizer"]["state"] for name in ("killed", "split"))
    for number, moment in moments.items():
        assert all(torch.equal(value, moments_2[number][name]) for name, value in moment.items()), number


def test_a_split_transformer_trains_as_one_process_does(labelled: PairStore, config: TrainConfig, tmp_path: Path):
    alone = PairStore(shutil.copytree(labelled.path, tmp_path / "alone"))
    config = replace(config, **OPTIONS, model=str(tiny.saved("sd3", tmp_path / "sd3")), lr_scheduler="constant")
    train(replace(config, gradient_accumulation_steps=4), alone)
    split = replace(config, output_dir=str(tmp_path / "split"))
    codes, printed = two_processes(words(split, labelled.path), tmp_path)
    assert codes == [0, 0], printed
    assert_same_within_rounding(config, split, 2e-4)
    # it goes on with the whole model in each process
    train(replace(config, gradient_accumulation_steps=4, max_train_steps=4), alone, resume=True)
    unsplit = [word for word in words(replace(split, max_train_steps=4), labelled.path) if word != "--fsdp"]
    codes, printed = two_processes([*unsplit, "--resume"], tmp_path)
    assert codes == [0, 0], printed
    before, weights, weights_2 = (
        kept(split.output_dir, 3)[0],
        kept(config.output_dir, 4)[0],
        kept(split.output_dir, 4)[0],
    )
    assert max((weight - before[name]).abs().max() for name, weight in weights_2.items()) > 5e-4
    assert all(torch.allclose(weight, weights_2[name], rtol=0, atol=2e-5) for name, weight in weights.items())


def test_the_gradient_of_every_familys_split_model_is_that_of_the_whole(tmp_path: Path):
    kinds = ["sd15", "sdxl", *{module: kind for kind, module in tiny.FLOW_KINDS.items()}.values()]
    differences = split_gradients(kinds, tmp_path)
    assert list(differences) == kinds
    for kind, (output, gradient) in differences.items():
        assert max(output, gradient) < 1e-6, kind
