"""A GPU computes what a CPU computes: losses, gradients, images and scores of every family's tiny model, and resumed runs.

`make gpu` runs these on a machine with a GPU. On others they compare the CPU with itself, for two families.
"""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from prefloop.bench.scoring import save_pickscore
from prefloop.core.signals import StopSignal
from prefloop.generate.config import GenerateConfig
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import Generation
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.relabel.scorers.pickscore import PickScore
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.objective import pair_losses
from prefloop.train.trainer import Trainer
from transformers import CLIPConfig

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
KINDS = ("sd15", "sd35")
if HAS_GPU:
    KINDS += (
        "sd21v",
        "sdxl",
        "sdxl-turbo",
        "pixart-sigma",
        "sana",
        "flux1-dev",
        "flux2-klein",
        "qwen-image",
        "z-image",
    )
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = tuple(DTYPES) if HAS_GPU else ("no", "bf16")
# Of errors and of the gradient, relative to their size. In bfloat16 on a CPU the largest of all families are 0.0033 and 0.24.
TOLERANCE = {"no": (1e-4, 1e-3), "bf16": (0.01, 0.5), "fp16": (0.002, 0.1)}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return lambda kind: folder / kind if (folder / kind).exists() else tiny.saved(kind, folder / kind)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """The same result every time, for as long as a test runs."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    gc.collect()


def trained(config: TrainConfig, store: PairStore, device: str, precision: Any, folder: str) -> Trainer:
    output = f"{config.output_dir}-{folder}-{device}-{precision}"
    Path(output).mkdir(exist_ok=True)
    return Trainer(
        replace(config, output_dir=output, cpu=device == "cpu", mixed_precision=precision), store, StopSignal()
    )


def errors_and_gradient(made: Trainer, of_dpo: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of both images of eight pairs, by the policy and its reference, and a gradient.

    Args:
        of_dpo: the gradient of the DPO loss; else that of the mean error, because in a difference of two errors that are almost
            equal little but rounding is left in half precision.
    """
    batches = made.data.batch(0, 8)
    errors = made.denoiser.errors(batches)
    pairs = [pair for batch in batches for pair in batch.pairs]
    loss = pair_losses(errors, pairs, made.config) if of_dpo else errors.chosen + errors.rejected
    made.accelerator.backward(loss.mean())
    if made.accelerator.scaler is not None:
        made.accelerator.unscale_gradients()
    gradient = torch.cat(
        [weight.grad.float().flatten() for weight in made.policy.parameters() if weight.grad is not None]
    )
    assert errors.ref_chosen is not None
    assert errors.ref_rejected is not None
    values = torch.cat([errors.chosen, errors.rejected, errors.ref_chosen, errors.ref_rejected])
    return values.detach().float().cpu(), gradient.cpu()


def away(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_and_gradients_are_those_of_a_cpu_in_float32(
    kind: str,
    precision: str,
    lora_rank: int,
    config: TrainConfig,
    labelled: PairStore,
    pipelines: Callable[[str], Path],
):
    config = replace(config, model=str(pipelines(kind)), lora_rank=lora_rank, resolution=32)
    expected = errors_and_gradient(trained(config, labelled, "cpu", "no", "expected"), precision == "no")
    shutil.rmtree(labelled.path / "cache")  # encoded on the other device too
    found = errors_and_gradient(trained(config, labelled, DEVICE, precision, "found"), precision == "no")
    distances = [away(*both) for both in zip(found, expected, strict=True)]
    assert expected[1].norm() > 0
    assert distances[0] < TOLERANCE[precision][0]
    assert distances[1] < TOLERANCE[precision][1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_a_cpu_in_float32(kind: str, precision: str, pipelines: Callable[[str], Path]):
    model = find_model(str(pipelines(kind)))
    images = []
    for device, dtype in (("cpu", torch.float32), (DEVICE, DTYPES[precision])):
        name: Any = str(dtype).removeprefix("torch.")
        config = GenerateConfig(
            model=model.source,
            num_inference_steps=4,
            guidance_scale=3.0,
            resolution=family_of(model).resolution if family_of(model).resolution <= 64 else 32,
            dtype=name,
            device=device,
        )
        batch = [Generation(f"a red circle {number}", 0, uuid4()) for number in range(2)]
        ((_, drawn),) = ImageSampler(model, config).batches(batch)
        images.append(np.stack([np.asarray(image, np.float32) for image in drawn]))
    assert images[0].std() > 1  # of 255
    assert (
        np.abs(images[1] - images[0]).mean() < {"no": 0.5, "bf16": 4.0, "fp16": 1.0}[precision]
    )  # at most 1.0 in bfloat16 on a CPU


@pytest.mark.slow(reason="trains and loads small models")
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(config: TrainConfig, labelled: PairStore, lora_rank: int):
    config = replace(config, lora_rank=lora_rank, max_train_steps=4, checkpointing_steps=2)
    whole = trained(config, labelled, DEVICE, "no", "whole")
    whole.train("run")
    first = trained(config, labelled, DEVICE, "no", "halves")
    micro_batches = first.feed.micro_batches(first.global_step)
    for _ in range(2):
        first.recent.append(first.step(micro_batches))
        first.global_step += 1
    first.state.save(2)
    second = trained(config, labelled, DEVICE, "no", "halves")
    second.train("run")
    assert second.global_step == 4
    for name, weight in whole.policy.trainable_state().items():
        assert torch.equal(weight, second.policy.trainable_state()[name]), name


@pytest.mark.slow(reason="trains and loads small models")
def test_scores_are_those_of_a_cpu(tmp_path: Path):
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    save_pickscore(tmp_path / "pickscore", CLIPConfig(text_config=dict(small), vision_config=dict(small)))
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (64, 48, 3), dtype=np.uint8)) for _ in range(8)]
    prompts = [f"a red circle number {number}" for number in range(8)]
    scores = [
        np.array(PickScore(str(tmp_path / "pickscore"), device, "float32").score(prompts, images))
        for device in ("cpu", DEVICE)
    ]
    assert scores[0].std() > 1e-3
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
