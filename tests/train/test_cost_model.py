"""FLOPs, memory and time of training, compared with real tensors and with known counts."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from cost_configs import DATA, N_WEIGHTS, SD15, SETTINGS, SPEED, TINY, TINY_UNET
from diffusers import UNet2DConditionModel
from prefloop.models.cost.flop_counter import CudaSemantics, count_pass
from prefloop.train.cost.cost_model import (
    OVERHEAD_BYTES,
    CostModel,
    DatasetSize,
    DeviceSpeed,
    optimizer_bytes,
)
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture(scope="module")
def sd15() -> CostModel:
    return CostModel(SD15, DATA, SPEED)


@pytest.fixture
def costs() -> CostModel:
    return CostModel(TINY, DATA, SPEED)


SD15_SETTINGS = replace(SETTINGS, resolution=512, train_batch_size=1)


@pytest.mark.parametrize(
    ("changes", "forward", "backward"),
    [({}, 803, 1604), ({"gradient_checkpointing": True}, 803, 1604 + 595), ({"lora_rank": 16}, 803, 917)],
)
def test_the_flops_of_stable_diffusion_match_torchs_flop_counter(
    sd15: CostModel, changes: dict, forward: float, backward: float
):
    # GFLOP per image, two to a pair, counted with torch's FlopCounterMode on the real configs
    counted = sd15.training_pass(replace(SD15_SETTINGS, **changes))
    assert counted.forward_flops / 2e9 == pytest.approx(forward, rel=0.03)
    assert counted.backward_flops / 2e9 == pytest.approx(backward, rel=0.03)


def test_the_time_of_encoding_follows_from_flops_counted_on_the_real_config():
    # 1,117 GFLOP for an image of 512 x 512; for the one prompt, the empty one, 2 * 123M weights * 77 tokens = 19
    speed = DeviceSpeed("cpu", {"no": 0.5e9}, 0.5)
    costs = CostModel(SD15, DatasetSize(n_pairs=1, n_images=10, n_prompts=0), speed)
    seconds = costs.seconds(replace(SD15_SETTINGS, flip=True))["caching"]
    assert seconds == pytest.approx(4 * (10 * 2 * 1117 + 19), rel=0.01)


def saved_for_backward(unet: Any, inputs: list[torch.Tensor], mode: AbstractContextManager) -> int:
    """Bytes that autograd keeps, excluding weights and inputs."""
    existing = {tensor.untyped_storage()._cdata for tensor in [*unet.parameters(), *inputs]}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in existing:
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


# the output, (4, 4, 16, 16) float32, is kept between the passes beside what autograd saved
OUTPUT_BYTES = 4 * 4 * 16 * 16 * 4


def test_activations_on_meta_tensors_are_as_large_as_on_real_ones(costs: CostModel):
    real = saved_for_backward(tiny_on("cpu"), inputs_on("cpu"), nullcontext())
    # on a GPU each of the 8 attentions also keeps two 8-byte numbers for its dropout
    assert costs.training_pass(SETTINGS).saved_bytes == real + 8 * 16 + OUTPUT_BYTES


@pytest.mark.slow(reason="counts the operations of whole models")
@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its fake tensors on a GPU need a driver")
def test_activations_in_half_precision_are_as_large_as_under_cuda_autocast(costs: CostModel):
    with FakeTensorMode(), torch.device("cuda"):
        unet, inputs = tiny_on("cuda"), inputs_on("cuda")
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            real = saved_for_backward(unet, inputs, CudaSemantics(None))
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
    counted = costs.training_pass(replace(SETTINGS, mixed_precision="bf16")).saved_bytes
    assert counted == real + OUTPUT_BYTES


def test_the_peak_is_within_a_tenth_of_what_the_profiler_records(costs: CostModel):
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


def test_full_fine_tuning_keeps_weights_gradients_optimizer_state_reference_and_ema(costs: CostModel):
    memory = costs.memory(replace(SETTINGS, ema=True))
    activations = costs.training_pass(SETTINGS).peak_bytes
    four = 4 * N_WEIGHTS
    kept = {"weights": four, "gradients": four, "optimizer": 2 * four, "reference": four, "EMA": four}
    assert memory["forward and backward"] == kept | {"activations": activations, "overhead": OVERHEAD_BYTES}
    assert memory["optimizer step"] == kept | {"overhead": OVERHEAD_BYTES}


def test_a_lora_keeps_gradients_and_optimizer_state_only_for_its_own_weights(costs: CostModel):
    # 4 transformers of 2 attentions, 4 matrices each; rank 4, width 32 in the outer blocks (3 of them) and 64 in the
    # middle; keys and values of every second attention read 32 values of format_estimate
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
def test_no_reference_model_is_in_memory_if_the_loss_needs_none_or_its_errors_are_precomputed(
    costs: CostModel, changes: dict
):
    assert "reference" not in costs.memory(replace(SETTINGS, **changes))["forward and backward"]


def test_several_processes_need_twice_the_memory_for_gradients(costs: CostModel):
    assert costs.memory(replace(SETTINGS, n_processes=2))["optimizer step"]["gradients"] == 8 * N_WEIGHTS


def test_adamw_on_a_gpu_needs_no_copy_of_the_weights_or_one_of_all_if_gradients_are_scaled(costs: CostModel):
    largest = 64 * 128 * 3 * 3  # the convolution after the skip connection joins
    on_cpu = CostModel(TINY, DATA, replace(SPEED, device="cpu"))
    for precision in ("no", "bf16"):
        assert "temporary" not in costs.memory(replace(SETTINGS, mixed_precision=precision))["optimizer step"]
    scaled = costs.memory(replace(SETTINGS, mixed_precision="fp16"))
    assert scaled["optimizer step"]["temporary"] == 4 * N_WEIGHTS
    for memory in (on_cpu.memory(SETTINGS), costs.memory(replace(SETTINGS, optimizer="adafactor"))):
        assert memory["optimizer step"]["temporary"] <= 4 * 256 * 256 * 9
        assert memory["optimizer step"]["temporary"] >= 4 * largest


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
def test_the_size_of_each_optimizers_state(optimizer: Any, shape: tuple[int, ...], n_bytes: int):
    assert optimizer_bytes(optimizer, shape) == n_bytes


def test_a_loss_on_one_image_of_a_pair_needs_half_the_flops(costs: CostModel):
    two, one = (costs.training_pass(replace(SETTINGS, images_per_pair=n)) for n in (2, 1))
    assert (one.forward_flops, one.backward_flops) == (two.forward_flops // 2, two.backward_flops // 2)


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_checkpointing_keeps_less_and_computes_more(costs: CostModel, half: torch.dtype | None):
    settings = replace(SETTINGS, resolution=512, mixed_precision="no" if half is None else "bf16")
    plain = costs.training_pass(settings)
    checkpointed = costs.training_pass(replace(settings, gradient_checkpointing=True))
    again = costs.training_pass(settings)  # the same model, with checkpointing off again
    assert again == plain
    assert checkpointed.saved_bytes < plain.saved_bytes / 3
    assert checkpointed.saved_bytes < checkpointed.peak_bytes < plain.peak_bytes
    recomputed = checkpointed.backward_flops - plain.backward_flops
    assert 0.5 * plain.forward_flops < recomputed <= plain.forward_flops


def test_autocast_keeps_its_copies_of_weights_until_the_forward_pass_ends(costs: CostModel):
    settings = replace(SETTINGS, resolution=32, train_batch_size=1, gradient_checkpointing=True, mixed_precision="bf16")
    counted = costs.training_pass(settings)
    assert counted.saved_bytes < 0.5 * 2 * N_WEIGHTS < 0.95 * 2 * N_WEIGHTS < counted.peak_bytes


def test_frozen_weights_of_a_lora_are_in_half_precision_already_and_are_not_copied(costs: CostModel):
    settings = replace(SETTINGS, resolution=32, train_batch_size=1, mixed_precision="bf16", lora_rank=4)
    assert costs.training_pass(settings).saved_bytes < 0.5 * 2 * N_WEIGHTS


def test_a_pass_counted_with_remembered_results_costs_the_same():
    unet, inputs = tiny_on("meta"), inputs_on("meta")
    memo: dict = {}
    first, second = (count_pass(unet, lambda: unet(*inputs).sample, None, memo) for _ in range(2))
    assert first == second


def test_time_is_flops_divided_by_speed(costs: CostModel):
    seconds = costs.seconds(SETTINGS)
    step = costs.training_pass(SETTINGS)
    # 50 steps of 4 passes; half of 1 TFLOP/s
    assert seconds["training"] == pytest.approx(200 * (step.forward_flops + step.backward_flops) / 0.5e12)
    assert seconds["reference"] == pytest.approx(200 * step.forward_flops / 0.5e12)
    half = costs.seconds(replace(SETTINGS, mixed_precision="bf16"))
    assert half["training"] == pytest.approx(seconds["training"] / 4)
    assert half["caching"] == seconds["caching"]


def test_precomputed_reference_errors_take_one_pass_per_pair(costs: CostModel):
    always = costs.seconds(SETTINGS)["reference"]  # for 400 pairs, of which 100 are distinct
    assert costs.seconds(replace(SETTINGS, reference_draws=True))["reference"] == pytest.approx(always / 4)
    assert costs.seconds(replace(SETTINGS, has_reference=False))["reference"] == 0
    # four processes see 400 pairs each and compute the errors of 25 each
    on_four = costs.seconds(replace(SETTINGS, reference_draws=True, n_processes=4))["reference"]
    assert on_four == pytest.approx(always / 16)


def test_the_empty_prompt_is_encoded_too():
    one, none = (
        CostModel(TINY, DatasetSize(n_pairs=1, n_images=0, n_prompts=n), SPEED).seconds(SETTINGS)["caching"]
        for n in (1, 0)
    )
    assert none > 0
    assert one == pytest.approx(2 * none)
