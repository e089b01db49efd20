"""How many images are generated at once follows from the counted memory of one and the free memory of a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.core.signals import StopSignal
from prefloop.generate.config import GenerateConfig
from prefloop.generate.fitting import KEPT_FREE, MOST, batch_size_of, bytes_per_image, images_that_fit
from prefloop.generate.image_worker import ModelFacts, image_batches
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import plan
from prefloop.models.cost.components import with_text_defaults
from prefloop.models.cost.flop_counter import CostCounter
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model

CONFIG = GenerateConfig(num_inference_steps=1, guidance_scale=7.5, auto_batch_size=True)


@pytest.mark.slow(reason="counts the operations of whole models")
@pytest.mark.parametrize("kind", ["sd15", "sd35", "flux1-dev"])
def test_the_bytes_of_an_image_are_those_of_a_real_batch_per_image(kind: str, tmp_path: Path):
    family = with_text_defaults(family_of(find_model(str(tiny.saved(kind, tmp_path / "model")))))
    model: Any = getattr(tiny.pipeline(kind), family.component).eval()
    n, side = 8, family.resolution // family.vae_factor
    prompts = {name: torch.zeros(n, *shape) for name, shape in family.prompt_shapes().items()}
    conditions = family.conditions(prompts, torch.zeros(n, 4), (family.resolution, family.resolution))
    # real tensors, and the CPU's own kernels
    with torch.no_grad(), CostCounter({}) as counter:
        family.predict(model, torch.zeros(n, family.latent_channels, side, side), torch.ones(n), conditions)
    without = replace(CONFIG, guidance_scale=1.0)
    assert bytes_per_image(family, without, torch.float32) == pytest.approx(counter.peak_bytes / n, rel=0.15)
    assert bytes_per_image(family, without, torch.float16) == bytes_per_image(family, without, torch.float32) // 2


@pytest.mark.slow(reason="counts the operations of whole models")
def test_guidance_takes_twice_the_memory_and_a_power_of_two_fits(tiny_pipeline: Path):
    family = with_text_defaults(family_of(find_model(str(tiny_pipeline))))
    each = bytes_per_image(family, CONFIG, torch.float16)
    assert each == 2 * bytes_per_image(family, replace(CONFIG, guidance_scale=1.0), torch.float16)
    fitting = [images_that_fit(family, CONFIG, KEPT_FREE + room, torch.float16) for room in (
        each // 2, each, 7 * each, 8 * each - 1, 8 * each, 9 * each, 10**6 * each
    )]  # fmt: skip
    assert fitting == [1, 1, 4, 4, 8, 8, MOST]
    assert images_that_fit(family, CONFIG, 0, torch.float16) == 1


def test_only_a_gpu_is_asked_and_only_if_told(tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]):
    model = find_model(str(tiny_pipeline))
    each = bytes_per_image(with_text_defaults(family_of(model)), CONFIG, torch.float16)

    def free(device: str) -> int:
        assert device == "cuda"
        return KEPT_FREE + 100 * each

    def fitted(device: str, **settings: Any) -> int:
        return batch_size_of(model, replace(CONFIG, **settings), device, torch.float16, free)

    assert fitted("cuda") == 64
    assert capsys.readouterr().err == "generating 64 at once, estimated from 1 GiB of free memory\n"
    assert fitted("cpu", batch_size=3) == 3
    assert fitted("cuda", auto_batch_size=False, batch_size=5) == 5
    assert capsys.readouterr().err == ""


def test_the_batches_of_a_plan_are_as_large_as_the_worker_says(tiny_pipeline: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {number}" for number in range(5)))
    config = replace(CONFIG, model=str(tiny_pipeline), prompts=str(tmp_path / "prompts.txt"), images_per_prompt=1)
    planned = plan(replace(config, device="cpu"), None)
    sampler = ImageSampler(planned.model, planned.config)
    assert sampler.batch_size == 32
    facts = ModelFacts(sampler.description, 0, batch_size=2)
    assert [len(batch.generations) for batch in image_batches(planned.missing, facts.batch_size, StopSignal())] == [
        2,
        2,
        1,
    ]
