"""The plan of all rounds that `prefloop loop --dry-run` prints."""

from pathlib import Path

import pytest
from prefloop.loop.plan import LoopPlan, as_json, plan_loop, plan_text
from prefloop.loop.settings_file import read_loop


def planned(*assignments: str) -> LoopPlan:
    return plan_loop(read_loop("shapes", {}, assignments))


@pytest.mark.slow(reason="counts the operations of whole models")
def test_the_recipes_counts_are_those_of_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    plan = planned()
    assert len(plan.rounds) == 4
    for number, each in enumerate(plan.rounds, 1):
        assert (each.n_prompts, each.n_images) == (350, 350 * 4)
        assert each.n_pairs == 350 * 6  # of four images six pairs
        assert (each.n_eval_images, each.n_steps) == (400 * 2, 240)
        # one scorer labels, four evaluate; the base's images are scored in the first round
        assert each.n_scores == 1400 + 4 * 800 * (2 if number == 1 else 1)
    assert plan.n_base_eval_images == 800
    assert plan.rounds[0].flops["eval"] == 2 * plan.rounds[1].flops["eval"]
    text = plan_text(plan)
    assert "1400 images for 350 prompts, up to 2100 pairs to train on, 240 steps, 800 images to evaluate" in text
    assert "9,600 images, 21,600 scores, 960 steps" in text  # 4 * (1400 + 800) + 800; 4 * 4600 + 3200
    assert as_json(plan)["flops"] == plan.flops == sum(sum(each.flops.values()) for each in plan.rounds)
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.slow(reason="counts the operations of whole models")
def test_fewer_prompts_pairs_passes_and_steps_cost_in_proportion():
    whole = planned("loop.rounds=1").rounds[0]
    less = planned(
        "loop.rounds=1",
        "loop.prompts_per_round=70",
        "loop.pairs_per_prompt=2",
        "generate.guidance_scale=1",
        "train.max_train_steps=60",
    ).rounds[0]
    assert (less.n_images, less.n_pairs) == (280, 140)
    assert less.flops["generate"] == pytest.approx(whole.flops["generate"] / 10)  # a fifth of the images, no guidance
    assert less.flops["train"] == whole.flops["train"] / 4


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_reference_beside_a_lora_takes_memory_from_the_second_round_on():
    lora = ("train.lora_rank=4", "train.train_batch_size=64")  # training takes more than encoding
    previous, base, single = (
        planned(*lora, *more).memory_bytes
        for more in (
            ("loop.rounds=2",),
            ("loop.rounds=2", "loop.reference=base"),
            ("loop.rounds=1", "loop.reference=base"),
        )
    )
    assert previous == single
    assert base - previous == pytest.approx(4 * 3_519_160, rel=0.01)  # float32 weights of the U-Net
