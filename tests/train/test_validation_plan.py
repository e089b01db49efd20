"""By default validation is about 3 % of what a run computes; what the user says, and what a run began with, stays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prefloop.core.json import plain
from prefloop.shapes.demo import DemoConfig, demo_settings
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.cost.dry_run import dry_run
from prefloop.train.monitor.tables import read_rows
from prefloop.train.monitor.validation import REFERENCE_FILE, Validation
from prefloop.train.monitor.validation_plan import ValidationPlan, plan_validation
from prefloop.train.pairs import Pairs
from prefloop.train.recipes import read_settings, recipes
from prefloop.train.tensor_file import read_tensors, write_tensors
from prefloop.train.trainer import Trainer

Make = Callable[..., Trainer]


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"output_dir": "out", "labelers": ("me",)} | changes)


@pytest.mark.parametrize(
    ("changes", "n_held_out", "plan", "n_denoised"),
    [
        # 64,000 pairs of 3 forward passes: 3 % are 5760, in 5 bins 1152. 1152 / 11 = 104 pairs; 1152 / 104 = 11 passes, one of
        # which is the reference's: 10 in 1000 steps
        ({}, 5000, ValidationPlan(100, 104), 11 * 104 * 5),
        # another model as the reference: 1152 / 12 = 96 pairs; 12 passes, 2 of them before the first step
        ({"reference": "other"}, 5000, ValidationPlan(100, 96), 12 * 96 * 5),
        # 1152 / 40 = 28 passes of all that there are, but at most 20
        ({}, 40, ValidationPlan(50, 40), 21 * 40 * 5),
        # all weights: 4 forward passes, 1536 / 11 = 139 pairs, 11 passes
        ({"lora_rank": 0}, 5000, ValidationPlan(100, 139), 11 * 139 * 5),
        # no reference in a step: 2 forward passes, 768 / 11 = 69 pairs, 11 passes
        ({"reference_draws": 1}, 5000, ValidationPlan(100, 69), 11 * 69 * 5),
        # a quarter of the pairs: 288 / 64 = 4 passes, which the least number overrules
        ({"gradient_accumulation_steps": 2}, 5000, ValidationPlan(200, 64), 6 * 64 * 5),
        # early stopping waits for 3 passes: 5 + 3 in 1000 steps are 125 steps apart
        ({"gradient_accumulation_steps": 2, "early_stopping": 3}, 5000, ValidationPlan(130, 64), 9 * 64 * 5),
        # given: 20 passes of as many pairs as ever, one more of the reference
        ({"validation_steps": 50}, 5000, ValidationPlan(50, 256), 21 * 256 * 5),
        ({"validation_steps": 7}, 40, ValidationPlan(7, 40), 144 * 40 * 5),
    ],
)
def test_pairs_and_then_passes_are_fewer_until_3_percent_pay_for_them(
    changes: dict[str, Any], n_held_out: int, plan: ValidationPlan, n_denoised: int
):
    small = {"max_train_steps": 1000, "train_batch_size": 8, "gradient_accumulation_steps": 8}
    config = settings(**small | changes)
    assert plan_validation(config, n_held_out) == plan
    assert plan.n_denoised(config) == n_denoised


def test_no_recipe_validates_for_more_than_3_percent_of_its_run():
    for name in recipes():
        config = settings(**read_settings(name))
        assert config.validation_steps is None
        n_pairs = config.max_train_steps * config.train_batch_size * config.gradient_accumulation_steps
        # policy, reference, and at least a forward pass's worth of backward pass
        for n_held_out in (30, 100, 300, 10_000):
            assert plan_validation(config, n_held_out).n_denoised(config) <= 0.03 * 3 * n_pairs, name


@pytest.mark.parametrize("quick", [False, True])
def test_the_demo_is_validated_every_50_steps_on_all_its_held_out_pairs(quick: bool):
    config = demo_settings(DemoConfig(quick=quick)).train_config(1, "pickscore")
    for n_held_out in (1, 42, 64):
        assert plan_validation(config, n_held_out) == ValidationPlan(50, n_held_out)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_before_the_first_step_the_policy_has_the_errors_of_its_reference(trainer: Make, lora_rank: int):
    made = trainer(lora_rank=lora_rank)
    made.monitor.begin(0)
    computed = made.monitor.validation.run(made.denoiser.policy_errors, 0)
    assert plain(made.monitor.validation.run_as_reference(0)) == plain(computed)  # to the last bit
    assert [row["bin"] for row in read_rows(made.output / "validation.csv")] == ["all", "0", "1", "2", "3", "4"]


def test_another_model_as_the_reference_is_compared_before_the_first_step(trainer: Make, config: TrainConfig):
    made = trainer(reference=config.model)
    with torch.no_grad():
        for weight in made.policy.parameters():
            weight.mul_(1.1)
    made.monitor.begin(0)
    (row, *_) = read_rows(made.output / "validation.csv")
    assert row["chosen_error"] != row["ref_chosen_error"]


def on_many_pairs(made: Trainer, n: int, **changes: Any) -> Validation:
    """Its validation as if n of the training pairs were held out."""
    pairs = made.data.pairs
    made.data.encode(0, len(pairs.train))
    data = replace(made.data, pairs=Pairs(pairs.validation, pairs.train.select(list(range(n))), pairs.texts))
    return Validation(data, replace(made.config, **changes))


def test_a_resumed_run_keeps_its_pairs_and_its_interval_unless_another_is_given(trainer: Make, tmp_path: Path):
    made = trainer(train_batch_size=9)
    begun = on_many_pairs(made, 20)
    begun.follow(ValidationPlan(70, 9))
    begun.compute_reference(made.denoiser.reference_errors, tmp_path)
    for given, steps in ((None, 70), (30, 30)):
        resumed = on_many_pairs(made, 20, validation_steps=given)
        assert len(resumed.pairs) == 20
        assert resumed.load_reference(tmp_path)
        assert (resumed.plan.steps, resumed.pairs) == (steps, begun.pairs)
    kept, metadata = read_tensors(tmp_path / REFERENCE_FILE)
    write_tensors(tmp_path / REFERENCE_FILE, kept, {"draws": metadata["draws"]})  # as before the interval was kept
    former = on_many_pairs(made, 20, max_train_steps=10**4)
    assert former.plan.steps > 50
    assert former.load_reference(tmp_path)
    assert (former.plan.steps, former.pairs) == (50, begun.pairs)


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_dry_run_shows_the_share_of_validation(labelled: PairStore, config: TrainConfig):
    text, values = dry_run(replace(config, max_train_steps=200), labelled)
    # 200 steps of 2 pairs, 3 forward passes each and at least 2 of a backward pass; 1 pair held out: 4 passes and the
    # reference's in 5 bins are 25 forward passes
    estimated = values["estimate"]
    assert values["validation"] == {"steps": 50, "n_pairs": 1}
    reference, training = estimated["seconds"]["reference"], estimated["seconds"]["training"]
    assert estimated["seconds"]["validation"] == pytest.approx(reference * 25 / 400)
    share = 1 / (1 + (reference + training) / (reference * 25 / 400))
    assert estimated["validation_share"] == pytest.approx(share)
    assert 0.01 < share < 0.02
    assert "1 pair held out, 1 validated every 50 steps\n" in text
    assert f" ({100 * share:.1f} % of the run)\n" in text
    (line,) = [line for line in text.splitlines() if line.startswith("time ")]
    assert ", validation " in line
