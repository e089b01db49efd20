"""docs/hardware.md: the numbers of its table are those of the estimate."""

import re
from pathlib import Path

import pytest
from cost_configs import SD15
from prefloop.models.cost.speed import DeviceSpeed
from prefloop.train import TrainConfig
from prefloop.train.cost.cost_model import DatasetSize
from prefloop.train.cost.dry_run import cost_settings
from prefloop.train.cost.estimate import estimate
from prefloop.train.recipes import read_settings, recipes

TEXT = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text().split("## Which recipe fits")[0]
ASSUMED = DeviceSpeed("as on the page", {"no": 60e12, "fp16": 400e12, "bf16": 400e12}, 0.35)


@pytest.mark.slow(reason="runs the commands of a document")
def test_the_row_of_the_first_recipe_is_what_the_estimate_says():
    config = TrainConfig(**{"output_dir": "unused", "labelers": ("any",)} | read_settings("sd15-lora"))
    data = DatasetSize(n_pairs=5000, n_images=10_000, n_prompts=5000)
    estimated = estimate(SD15, data, cost_settings(config, SD15), ASSUMED)
    memory = {phase: sum(parts.values()) / 2**30 for phase, parts in estimated.memory_bytes.items()}
    hours = {name: seconds / 3600 for name, seconds in estimated.seconds.items()}
    expected = [
        f"{estimated.n_parameters / 1e9:.2f} billion, {estimated.n_trained / 1e6:.1f} million",
        f"{estimated.n_steps * estimated.pairs_per_step:,}",
        f"{memory['caching']:.0f}",
        f"{memory['forward and backward']:.0f}",
        f"{estimated.flops_per_pair / 1e12:.1f}",
        f"{hours['caching']:.1f}, {hours['reference'] + hours['training']:.1f}",
        f"{sum(estimated.cache_bytes.values()) / 2**30:.1f}",
    ]
    (row,) = re.findall(r"^\| `sd15-lora` \| (.*) \|$", TEXT, re.M)
    assert row.split(" | ") == expected


def test_every_row_is_a_recipe():
    names = re.findall(r"^\| `([a-z][a-z0-9-]+)` \|", TEXT, re.M)
    assert names
    assert set(names) <= set(recipes())
