"""The estimate of a run: disk, epochs, peak memory, tradeoffs, and the text that --dry-run prints."""

import json
import re
import time
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from cost_configs import DATA, SETTINGS, SPEED, TINY, TINY_XL
from prefloop.models.cost.speed import measured_speed
from prefloop.train.cost.cards import cards_text, options_by_card
from prefloop.train.cost.cost_model import CostModel
from prefloop.train.cost.estimate import estimate, format_estimate


def test_the_size_of_the_cache_on_disk():
    # 16 x 16 x 4 latent values, mean and deviation of 2 bytes; 77 tokens of 32 values; the empty prompt is one more
    estimated = estimate(TINY, DATA, replace(SETTINGS, flip=True), SPEED).cache_bytes
    assert estimated == {"latents": 150 * 2 * 2 * 1024 * 2, "prompt embeddings": 41 * 77 * 32 * 2}


def test_epochs_follow_from_steps_and_pairs_per_step():
    estimated = estimate(TINY, DATA, replace(SETTINGS, n_processes=3), SPEED)
    assert (estimated.n_pairs, estimated.n_steps, estimated.pairs_per_step, estimated.epochs) == (100, 50, 24, 12)


@pytest.mark.slow(reason="counts the operations of whole models")
def test_the_peak_is_that_of_the_largest_phase():
    training = estimate(TINY, DATA, replace(SETTINGS, resolution=512, train_batch_size=8), SPEED)
    caching = estimate(TINY, DATA, replace(SETTINGS, resolution=512, encode_batch=64), SPEED)
    assert (training.peak_phase, caching.peak_phase) == ("forward and backward", "caching")
    for estimated in (training, caching):
        assert estimated.peak_bytes == max(sum(parts.values()) for parts in estimated.memory_bytes.values())


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_tradeoff_is_the_difference_between_two_estimates():
    estimated = estimate(TINY, DATA, replace(SETTINGS, resolution=512), SPEED)
    tradeoffs = {tradeoff.option: tradeoff for tradeoff in estimated.tradeoffs}
    changes = {
        "--gradient-checkpointing": {"gradient_checkpointing": True},
        "--train-batch-size 1 --gradient-accumulation-steps 8": {
            "train_batch_size": 1,
            "gradient_accumulation_steps": 8,
        },
        "--mixed-precision bf16": {"mixed_precision": "bf16"},
        "--reference-draws 1": {"reference_draws": True},
    }
    for option, changed in changes.items():
        other = estimate(TINY, DATA, replace(SETTINGS, resolution=512, **changed), SPEED)
        assert tradeoffs[option].saved_bytes == training_bytes(estimated) - training_bytes(other)
        assert tradeoffs[option].time_change == pytest.approx(other.total_seconds / estimated.total_seconds - 1)
    saved = [tradeoff.saved_bytes for tradeoff in estimated.tradeoffs]
    assert saved == sorted(saved, reverse=True)


@pytest.mark.slow(reason="counts the operations of whole models")
def test_tradeoffs_are_about_training_even_if_caching_is_the_peak():
    small = replace(SETTINGS, resolution=512, lora_rank=4, optimizer="adafactor", mixed_precision="bf16")
    training = estimate(TINY, DATA, small, SPEED)
    caching = estimate(TINY, DATA, replace(small, encode_batch=64), SPEED)
    assert caching.peak_phase != training.peak_phase
    assert {tradeoff.option: tradeoff.saved_bytes for tradeoff in caching.tradeoffs} == {
        tradeoff.option: tradeoff.saved_bytes for tradeoff in training.tradeoffs
    }


def training_bytes(estimated: Any) -> int:
    return max(sum(parts.values()) for phase, parts in estimated.memory_bytes.items() if phase != "caching")


def test_settings_already_chosen_are_not_proposed():
    settings = replace(
        SETTINGS,
        train_batch_size=1,
        lora_rank=4,
        mixed_precision="bf16",
        gradient_checkpointing=True,
        optimizer="adafactor",
        reference_draws=True,
    )
    assert estimate(TINY, DATA, settings, SPEED).tradeoffs == ()


@pytest.mark.slow(reason="counts the operations of whole models")
def test_sdxl_also_caches_and_computes_with_pooled_embeddings():
    estimated = estimate(TINY_XL, DATA, SETTINGS, SPEED)
    assert estimated.cache_bytes["prompt embeddings"] == 41 * (77 * 32 + 24) * 2
    assert estimated.flops_per_pair > estimate(TINY, DATA, SETTINGS, SPEED).flops_per_pair


@pytest.mark.slow(reason="counts the operations of whole models")
def test_the_estimate_is_json_and_at_most_16_lines():
    estimated = estimate(TINY, DATA, SETTINGS, SPEED)
    assert json.loads(json.dumps(asdict(estimated)))["peak_bytes"] == estimated.peak_bytes
    lines = format_estimate(estimated).splitlines()
    assert len(lines) <= 16
    assert lines[0] == "pairs     100; 50 steps of 8 pairs = 4 epochs"
    assert lines[-1].startswith("These are estimates.")
    assert "50 % of the 1 TFLOP/s that a matrix product reached on cuda" in lines[-1]


@pytest.mark.slow(reason="counts the operations of whole models")
def test_every_number_of_the_estimate_is_finite_and_has_its_unit():
    # from a run of one tiny step to one of a billion
    for steps in (1, 10**9):
        lines = format_estimate(estimate(TINY, DATA, replace(SETTINGS, max_train_steps=steps), SPEED))
        assert "inf" not in lines
        assert "nan" not in lines
        sizes = [
            part for line in lines.splitlines()[1:6] for part in re.split(", |: ", line) if re.search(r" \d", part)
        ]
        assert len(sizes) > 8
        for part in sizes:
            assert re.search(r"[1-9][\d.]* (GiB|MiB|s|min|h|days)\b", part), part


def test_speed_is_measured_for_each_precision():
    speed = measured_speed(torch.device("cpu"))
    assert set(speed.flops_per_second) == {"no", "fp16", "bf16"}
    matrix = torch.ones(512, 512)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        took.append(time.perf_counter() - start)
    # a wide margin: other processes may run
    assert 0.1 < speed.flops_per_second["no"] * min(took) / (2 * 512**3) < 10


def test_each_card_gets_the_first_options_that_fit():
    # a run may take 95 % of a card
    settings = replace(SETTINGS, resolution=512, train_batch_size=4, gradient_accumulation_steps=2)
    costs = CostModel(TINY, DATA, SPEED)
    checkpointed = replace(settings, gradient_checkpointing=True)
    small = replace(checkpointed, train_batch_size=1, gradient_accumulation_steps=8)
    peaks = [
        max(sum(parts.values()) for parts in costs.memory(one).values()) for one in (settings, checkpointed, small)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3
    options = ["", "--gradient-checkpointing"]
    options.append("--gradient-checkpointing --train-batch-size 1 --gradient-accumulation-steps 8")
    exact = [peak / 2**30 / 0.95 for peak in peaks]
    for card, option in zip(exact, options, strict=True):
        assert options_by_card(costs, settings, (card * 1.0001,)) == {card * 1.0001: option}
    assert options_by_card(costs, settings, (exact[2] * 0.9999,)) == {exact[2] * 0.9999: None}
    assert list(options_by_card(costs, settings, (exact[0] * 2, exact[2] / 2, exact[1] * 1.0001)).values()) == [
        None,
        options[1],
        "",
    ]


def test_a_lora_is_quantized_where_nothing_else_makes_it_fit():
    more, less = 1 + 1e-7, 1 - 1e-7  # of 1 GiB of overhead, a tiny model is little
    settings = replace(SETTINGS, lora_rank=4, gradient_checkpointing=True, train_batch_size=1)
    costs = CostModel(TINY, DATA, SPEED)
    exact = []
    for kind in ("no", "int8", "nf4"):
        memory = costs.memory(replace(settings, quantize=kind)).values()
        exact.append(max(sum(parts.values()) for parts in memory) / 2**30 / 0.95)
    for card, option in zip(exact, ["", "--quantize int8", "--quantize nf4"], strict=True):
        assert options_by_card(costs, settings, (card * more,)) == {card * more: option}
    assert options_by_card(costs, settings, (exact[2] * less,)) == {exact[2] * less: None}
    # what is in 8 bits already has 4 left; a run that trains every weight has nothing to quantize
    assert list(options_by_card(costs, replace(settings, quantize="int8"), (exact[2] * more,)).values()) == [
        "--quantize nf4"
    ]
    assert list(options_by_card(costs, replace(settings, lora_rank=0), (exact[0] * more,)).values()) == [None]


@pytest.mark.slow(reason="counts the operations of whole models")
def test_quantizing_saves_memory_and_its_time_is_not_estimated():
    record: Any = TINY
    unet = TINY.settings.parts["unet"] | {"block_out_channels": [320, 1280], "attention_head_dim": 64}
    model = replace(record, settings=replace(TINY.settings, parts=TINY.settings.parts | {"unet": unet})).checked()
    settings = replace(SETTINGS, lora_rank=4, mixed_precision="bf16")
    estimated = estimate(model, DATA, settings, SPEED)
    tradeoffs = {tradeoff.option: tradeoff for tradeoff in estimated.tradeoffs}
    costs = CostModel(model, DATA, SPEED)
    for kind in ("int8", "nf4"):
        memory = costs.memory(replace(settings, quantize=kind))
        quantized = max(sum(parts.values()) for phase, parts in memory.items() if phase != "caching")
        assert tradeoffs[f"--quantize {kind}"].saved_bytes == training_bytes(estimated) - quantized > 0
        assert tradeoffs[f"--quantize {kind}"].time_change is None
    assert re.search(r"--quantize nf4: [\d.]+ .iB less memory, more time, not estimated\n", format_estimate(estimated))
    assert "--quantize" not in format_estimate(estimate(TINY, DATA, replace(settings, lora_rank=0), SPEED))


def test_cards_with_the_same_options_are_named_together():
    text = cards_text({16: None, 24: "--gradient-checkpointing", 48: "", 80: ""})
    assert text == "16 GB too small; 24 GB with --gradient-checkpointing; 48, 80 GB as set"
