"""What a run is said to need before it begins: counted without data, held against real tensors and known counts."""

import json
import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from prefloop.train.cost.cost_model import CONTEXT_BYTES, Costs, Data, Pipeline, Settings, Speed, optimizer_bytes
from prefloop.train.cost.estimate import estimate, measured_speed, text
from prefloop.train.cost.flop_counter import AsOnGpu, count_pass
from torch._subclasses.fake_tensor import FakeTensorMode

# Stable Diffusion 1.5
SD15 = Pipeline(
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae={
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    text_encoders=(
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "vocab_size": 49408,
        },
    ),
)
TINY_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
TINY = Pipeline(
    unet=TINY_UNET,
    vae={
        "latent_channels": 4,
        "block_out_channels": [8, 8, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 4,
    },
    text_encoders=(
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "vocab_size": 100,
        },
    ),
)
DATA = Data(n_pairs=100, n_images=150, n_prompts=40)
SETTINGS = Settings(
    resolution=128,
    train_batch_size=2,
    gradient_accumulation_steps=4,
    max_train_steps=50,
    n_processes=1,
    lora_rank=0,
    mixed_precision="no",
    gradient_checkpointing=False,
    optimizer="adamw",
    images_per_pair=2,
    has_reference=True,
    reference_draws=False,
    ema=False,
    flip=False,
    encode_batch=1,
)
SPEED = Speed("cuda", {"no": 1e12, "fp16": 4e12, "bf16": 4e12}, 0.5)
N_WEIGHTS = sum(weight.numel() for weight in UNet2DConditionModel(**TINY_UNET).parameters())


@pytest.fixture(scope="module")
def sd15() -> Costs:
    return Costs(SD15, DATA, SPEED)


@pytest.fixture
def costs() -> Costs:
    return Costs(TINY, DATA, SPEED)


SD15_SETTINGS = replace(SETTINGS, resolution=512, train_batch_size=1)


@pytest.mark.parametrize(
    ("changes", "forward", "backward"),
    [({}, 803, 1604), ({"gradient_checkpointing": True}, 803, 1604 + 595), ({"lora_rank": 16}, 803, 917)],
)
def test_operations_of_stable_diffusion_are_those_counted_before(
    sd15: Costs, changes: dict, forward: float, backward: float
):
    # GFLOP for an image, counted with torch's FlopCounterMode on the real configs
    counted = sd15.training_pass(replace(SD15_SETTINGS, **changes))
    assert counted.forward_flops / 2e9 == pytest.approx(forward, rel=0.03)
    assert counted.backward_flops / 2e9 == pytest.approx(backward, rel=0.03)


def test_encoding_a_picture_costs_what_was_counted_before():
    # 1,117 GFLOP for an image of 512 x 512; for the one prompt, the empty one, 2 * 123M weights * 77 tokens = 19
    speed = Speed("cpu", {"no": 0.5e9}, 0.5)
    costs = Costs(SD15, Data(n_pairs=1, n_images=10, n_prompts=0), speed)
    seconds = costs.seconds(replace(SD15_SETTINGS, flip=True))["caching"]
    assert seconds == pytest.approx(4 * (10 * 2 * 1117 + 19), rel=0.01)


def saved_for_backward(unet: Any, inputs: list[torch.Tensor], mode: AbstractContextManager) -> int:
    """Bytes that autograd keeps, weights and inputs left out."""
    there = {tensor.untyped_storage()._cdata for tensor in [*unet.parameters(), *inputs]}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in there:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mode:
        unet(*inputs)
    return sum(storage.nbytes() for storage in kept.values())


def inputs_on(device: str) -> list[torch.Tensor]:
    return [torch.ones(4, 4, 16, 16, device=device), torch.ones(4, device=device), torch.ones(4, 77, 32, device=device)]


def tiny_on(device: str) -> Any:
    with torch.device(device):
        return UNet2DConditionModel(**TINY_UNET).train()


# kept between the passes beside what autograd saved: the output, (4, 4, 16, 16) float32
OUTPUT_BYTES = 4 * 4 * 16 * 16 * 4


def test_activations_without_data_are_those_of_real_tensors(costs: Costs):
    real = saved_for_backward(tiny_on("cpu"), inputs_on("cpu"), nullcontext())
    # each of 8 attentions keeps two numbers of 8 bytes for its dropout on a GPU, and not on a CPU
    assert costs.training_pass(SETTINGS).saved_bytes == real + 8 * 16 + OUTPUT_BYTES


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its fake tensors on a GPU want a driver")
def test_activations_in_half_precision_are_those_of_cuda_autocast(costs: Costs):
    with FakeTensorMode(), torch.device("cuda"):
        unet, inputs = tiny_on("cuda"), inputs_on("cuda")
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            real = saved_for_backward(unet, inputs, AsOnGpu(None))
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
    counted = costs.training_pass(replace(SETTINGS, mixed_precision="bf16")).saved_bytes
    assert counted == real + OUTPUT_BYTES


def test_the_peak_is_what_a_real_allocator_saw(costs: Costs):
    unet, inputs = tiny_on("cpu"), inputs_on("cpu")
    for weight in unet.parameters():
        weight.grad = torch.zeros_like(weight)
    with torch.profiler.profile(profile_memory=True) as profile:
        unet(*inputs).sample.square().mean().backward()
    recorded: Any = profile.profiler
    allocations = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert costs.training_pass(SETTINGS).peak_bytes == pytest.approx(peak, rel=0.1)


def test_memory_is_the_sum_of_what_a_full_run_keeps(costs: Costs):
    memory = costs.memory(replace(SETTINGS, ema=True))
    activations = costs.training_pass(SETTINGS).peak_bytes
    four = 4 * N_WEIGHTS
    kept = {"weights": four, "gradients": four, "optimizer": 2 * four, "reference": four, "average": four}
    assert memory["forward and backward"] == kept | {"activations": activations, "context": CONTEXT_BYTES}
    assert memory["optimizer step"] == kept | {"update": four, "context": CONTEXT_BYTES}


def test_a_lora_keeps_state_of_its_own_weights_alone(costs: Costs):
    # 4 transformers of 2 attentions, 4 matrices each; rank 4, width 32 in the outer blocks (3 of them) and 64 in the
    # middle; keys and values of every second attention read 32 values of text
    def adapter(width: int) -> int:
        to_self, across = 4 * 4 * (width + width), 4 * (2 * (width + width) + 2 * (32 + width))
        return to_self + across

    n = 3 * adapter(32) + adapter(64)
    memory = costs.memory(replace(SETTINGS, lora_rank=4))["forward and backward"]
    assert memory["gradients"] == 4 * n
    assert memory["optimizer"] == 8 * n
    assert memory["weights"] == 4 * (N_WEIGHTS + n)
    assert "reference" not in memory


@pytest.mark.parametrize("changes", [{"has_reference": False}, {"reference_draws": True}])
def test_no_copy_is_kept_without_a_reference_or_with_its_errors_cached(costs: Costs, changes: dict):
    assert "reference" not in costs.memory(replace(SETTINGS, **changes))["forward and backward"]


def test_several_processes_keep_buckets_of_gradients(costs: Costs):
    assert costs.memory(replace(SETTINGS, n_processes=2))["optimizer step"]["gradients"] == 8 * N_WEIGHTS


def test_only_adamw_on_a_gpu_updates_all_weights_at_once(costs: Costs):
    largest = 64 * 128 * 3 * 3  # the convolution after the skip connection joins
    on_cpu = Costs(TINY, DATA, replace(SPEED, device="cpu"))
    assert costs.memory(SETTINGS)["optimizer step"]["update"] == 4 * N_WEIGHTS
    for memory in (on_cpu.memory(SETTINGS), costs.memory(replace(SETTINGS, optimizer="adafactor"))):
        assert memory["optimizer step"]["update"] <= 4 * 256 * 256 * 9
        assert memory["optimizer step"]["update"] >= 4 * largest


@pytest.mark.parametrize(
    ("optimizer", "shape", "n_bytes"),
    [
        ("adamw", (64, 128), 2 * 4 * 64 * 128),
        ("adafactor", (64, 128), 4 * (64 + 128)),
        ("adafactor", (8, 4, 3, 3), 4 * (8 * 4 * 3 + 8 * 4 * 3)),
        ("adafactor", (64,), 4 * 64),
        ("adamw8bit", (64, 128), 2 * (64 * 128 + 4 * 32)),  # 32 blocks of 256
        ("adamw8bit", (10, 10), 2 * 4 * 100),
    ],
)
def test_state_of_each_optimizer(optimizer: Any, shape: tuple[int, ...], n_bytes: int):
    assert optimizer_bytes(optimizer, shape) == n_bytes


def test_a_loss_that_looks_at_one_image_computes_half(costs: Costs):
    two, one = (costs.training_pass(replace(SETTINGS, images_per_pair=n)) for n in (2, 1))
    assert (one.forward_flops, one.backward_flops) == (two.forward_flops // 2, two.backward_flops // 2)


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_checkpointing_keeps_less_and_computes_more(costs: Costs, half: torch.dtype | None):
    settings = replace(SETTINGS, resolution=512, mixed_precision="no" if half is None else "bf16")
    plain = costs.training_pass(settings)
    checkpointed = costs.training_pass(replace(settings, gradient_checkpointing=True))
    again = costs.training_pass(settings)  # the same model, with checkpointing off again
    assert again == plain
    assert checkpointed.saved_bytes < plain.saved_bytes / 3
    assert checkpointed.saved_bytes < checkpointed.peak_bytes < plain.peak_bytes
    recomputed = checkpointed.backward_flops - plain.backward_flops
    assert 0.5 * plain.forward_flops < recomputed <= plain.forward_flops


def test_autocast_keeps_its_copies_of_weights_until_the_forward_pass_ends(costs: Costs):
    settings = replace(SETTINGS, resolution=32, train_batch_size=1, gradient_checkpointing=True, mixed_precision="bf16")
    counted = costs.training_pass(settings)
    assert counted.saved_bytes < 0.5 * 2 * N_WEIGHTS < 0.95 * 2 * N_WEIGHTS < counted.peak_bytes


def test_what_operations_gave_before_changes_no_count():
    unet, inputs = tiny_on("meta"), inputs_on("meta")
    known: dict = {}
    first, second = (count_pass(unet, lambda: unet(*inputs).sample, None, known) for _ in range(2))
    assert first == second


def test_the_cache_on_disk():
    # 16 x 16 x 4 latent values, mean and deviation of 2 bytes; 77 tokens of 32 values; the empty prompt is one more
    found = estimate(TINY, DATA, replace(SETTINGS, flip=True), SPEED).cache_bytes
    assert found == {"latents": 150 * 2 * 2 * 1024 * 2, "texts": 41 * 77 * 32 * 2}


def test_steps_and_epochs():
    found = estimate(TINY, DATA, replace(SETTINGS, n_processes=3), SPEED)
    assert (found.n_pairs, found.n_steps, found.pairs_per_step, found.epochs) == (100, 50, 24, 12)


def test_time_is_operations_over_speed(costs: Costs):
    seconds = costs.seconds(SETTINGS)
    one = costs.training_pass(SETTINGS)
    # 50 steps of 4 passes; half of 1 TFLOP/s
    assert seconds["training"] == pytest.approx(200 * (one.forward_flops + one.backward_flops) / 0.5e12)
    assert seconds["reference"] == pytest.approx(200 * one.forward_flops / 0.5e12)
    half = costs.seconds(replace(SETTINGS, mixed_precision="bf16"))
    assert half["training"] == pytest.approx(seconds["training"] / 4)
    assert half["caching"] == seconds["caching"]


def test_a_cached_reference_is_asked_once_for_each_pair(costs: Costs):
    always = costs.seconds(SETTINGS)["reference"]  # 400 pairs are seen, 100 are there
    assert costs.seconds(replace(SETTINGS, reference_draws=True))["reference"] == pytest.approx(always / 4)
    assert costs.seconds(replace(SETTINGS, has_reference=False))["reference"] == 0
    # four processes see 400 pairs each, and ask for 25 each
    on_four = costs.seconds(replace(SETTINGS, reference_draws=True, n_processes=4))["reference"]
    assert on_four == pytest.approx(always / 16)


def test_the_empty_prompt_is_encoded_too():
    one, none = (
        Costs(TINY, Data(n_pairs=1, n_images=0, n_prompts=n), SPEED).seconds(SETTINGS)["caching"] for n in (1, 0)
    )
    assert none > 0
    assert one == pytest.approx(2 * none)


def test_the_peak_is_that_of_the_largest_phase():
    training = estimate(TINY, DATA, replace(SETTINGS, resolution=512, train_batch_size=8), SPEED)
    caching = estimate(TINY, DATA, replace(SETTINGS, resolution=512, encode_batch=64), SPEED)
    assert (training.peak_phase, caching.peak_phase) == ("forward and backward", "caching")
    for found in (training, caching):
        assert found.peak_bytes == max(sum(parts.values()) for parts in found.memory_bytes.values())


def test_a_lever_says_what_an_estimate_with_it_would():
    found = estimate(TINY, DATA, replace(SETTINGS, resolution=512), SPEED)
    levers = {lever.option: lever for lever in found.levers}
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
        assert levers[option].saved_bytes == training_bytes(found) - training_bytes(other)
        assert levers[option].time_change == pytest.approx(other.total_seconds / found.total_seconds - 1)
    saved = [lever.saved_bytes for lever in found.levers]
    assert saved == sorted(saved, reverse=True)


def test_levers_are_said_of_training_where_caching_is_the_peak():
    least = replace(SETTINGS, resolution=512, lora_rank=4, optimizer="adafactor", mixed_precision="bf16")
    training = estimate(TINY, DATA, least, SPEED)
    caching = estimate(TINY, DATA, replace(least, encode_batch=64), SPEED)
    assert caching.peak_phase != training.peak_phase
    assert {lever.option: lever.saved_bytes for lever in caching.levers} == {
        lever.option: lever.saved_bytes for lever in training.levers
    }


def training_bytes(found: Any) -> int:
    return max(sum(parts.values()) for phase, parts in found.memory_bytes.items() if phase != "caching")


def test_levers_already_pulled_are_not_offered():
    settings = replace(
        SETTINGS,
        train_batch_size=1,
        lora_rank=4,
        mixed_precision="bf16",
        gradient_checkpointing=True,
        optimizer="adafactor",
        reference_draws=True,
    )
    assert estimate(TINY, DATA, settings, SPEED).levers == ()


def test_sdxl_is_told_sizes_and_pooled_text():
    unet = TINY_UNET | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
    }
    encoder = TINY.text_encoders[0]
    pipeline = replace(TINY, unet=unet, text_encoders=(encoder, encoder | {"projection_dim": 24}))
    found = estimate(pipeline, DATA, SETTINGS, SPEED)
    assert found.cache_bytes["texts"] == 41 * (77 * 32 + 24) * 2
    assert found.flops_per_pair > estimate(TINY, DATA, SETTINGS, SPEED).flops_per_pair


def test_the_estimate_is_json_and_a_few_lines():
    found = estimate(TINY, DATA, SETTINGS, SPEED)
    assert json.loads(json.dumps(asdict(found)))["peak_bytes"] == found.peak_bytes
    lines = text(found).splitlines()
    assert len(lines) <= 16
    assert lines[0] == "pairs     100; 50 steps of 8 pairs are 4 epochs"
    assert lines[-1].startswith("An estimate.")
    assert "50% of the 1 TFLOP/s that a matrix product reached on cuda" in lines[-1]


def test_every_number_of_the_estimate_is_finite_and_has_its_unit():
    # from a run of one tiny step to one of a billion
    for steps in (1, 10**9):
        told = text(estimate(TINY, DATA, replace(SETTINGS, max_train_steps=steps), SPEED))
        assert "inf" not in told
        assert "nan" not in told
        sizes = [part for line in told.splitlines()[1:6] for part in re.split(", |: ", line) if re.search(r" \d", part)]
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
