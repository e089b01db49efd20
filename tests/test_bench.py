"""The benchmark is fair: the plain twin and the training loop compute the same thing."""

import json
import sys
from pathlib import Path

import content
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from prefloop.bench import gpu, rules, train_step
from prefloop.bench.measure import cost_of, tensors_of
from prefloop.bench.ours import Ours
from prefloop.bench.plain_twin import PlainTwin, TwinConfig
from prefloop.store import PairStore
from prefloop.store.images import png_bytes
from prefloop.train.config import TrainConfig
from prefloop.train.losses import dpo_logits
from torch import nn

N_PAIRS = 4
CPU = torch.device("cpu")


def both(store: PairStore, folder: Path, lora_rank: int) -> tuple[Ours, PlainTwin]:
    """The training loop and the twin with the same weights, slightly different from those of their references."""
    content.add_labeler(store, "bench")
    for number in range(2 * N_PAIRS):
        images = [add_noise(store, 2 * number + side) for side in range(2)]
        pair = content.add_pair(store, content.add_prompt(store, f"prompt {number}"), *images)
        content.add_label(store, pair, "bench", "a")
    store.ingest()
    # with an epsilon this large AdamW's first step is the gradient itself, g / (|g| + 1); clipped in one case only
    shared: dict[str, float] = {"learning_rate": 1e-3, "adam_epsilon": 1.0, "max_grad_norm": 1e6 if lora_rank else 1.0}
    config = TrainConfig(
        output_dir=str(folder.parent / "tuned"),
        labelers=("bench",),
        model=str(folder),
        lora_rank=lora_rank,
        beta=5000.0,
        **shared,  # type: ignore[arg-type]  # three numbers
        lr_scheduler="constant",
        lr_warmup_steps=0,
        optimizer="adamw",
        train_batch_size=N_PAIRS,
        proportion_empty_prompts=0.0,
        dataloader_num_workers=0,
        cpu=True,
    )
    ours = Ours(config, store)
    twin_config = TwinConfig(lora_rank=lora_rank, beta=5000.0, **shared)  # type: ignore[arg-type]
    twin = PlainTwin(folder, twin_config, CPU)
    generator = torch.Generator().manual_seed(0)
    far = 0.003 if lora_rank else 0.0003  # makes the logits about 1
    with torch.no_grad():
        for parameter in ours.trainer.policy.parameters():
            parameter.add_(far * torch.randn(parameter.shape, generator=generator))
    twin.unet.load_state_dict(ours.trainer.policy.component.state_dict())
    return ours, twin


def add_noise(store: PairStore, seed: int):
    noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    row = store.write_image(png_bytes(Image.fromarray(noise)), 32, 32)
    store.append("images", [row])
    return row["image_id"]


def learned(unet: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in unet.parameters() if weight.requires_grad])


@pytest.mark.slow(reason="runs a benchmark")
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_twin_and_the_loop_take_the_same_step(store: PairStore, tmp_path: Path, lora_rank: int, kind: str):
    ours, twin = both(store, tiny.saved(kind, tmp_path / "model"), lora_rank)
    before = learned(twin.unet)
    examples = ours.examples(0, N_PAIRS)
    logits = torch.tensor(twin.step(examples))
    with torch.no_grad():
        errors = ours.trainer.denoiser.errors(ours.trainer.data.batch(0, N_PAIRS))
    four = (errors.chosen, errors.rejected, errors.ref_chosen, errors.ref_rejected)
    loop_logits = dpo_logits(*four, beta=5000.0)
    assert logits.square().mean().sqrt() > 0.5  # far enough from the reference that a difference would show
    assert (logits - loop_logits).abs().max() < 5e-3
    assert ours.step() == pytest.approx(float(logits.mean()), abs=5e-3)
    loop_step, twin_step = learned(ours.trainer.policy.component) - before, learned(twin.unet) - before
    assert twin_step.norm() > 0
    # the only difference is the rounding of cached latents to float16
    assert (loop_step - twin_step).norm() < 5e-3 * twin_step.norm()


def test_operations_of_a_step_are_counted():
    # forward 2 * 3 * 5 * 7 = 210; backward as much for the weight, and nothing for the input, which needs no gradient
    layer = nn.Linear(5, 7, bias=False)
    cost = cost_of(lambda: layer(torch.ones(3, 5)).sum().backward(), [layer.weight])
    assert cost.flops == 2 * 210
    # the weight and its gradient, 35 each, the input, 15, the sum and its gradient, 1 each; the output is gone by then
    assert cost.peak_bytes == 4 * (35 + 35 + 15 + 1 + 1)


def test_attention_on_a_cpu_is_counted():
    query = torch.randn(2, 4, 16, 8, requires_grad=True)

    def attend() -> None:
        nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()

    # two products of 16 x 8 x 16 for each of 2 x 4 heads, 2 operations each; backward twice that
    assert cost_of(attend, [query]).flops == 3 * (2 * 4 * 2 * 2 * 16 * 8 * 16)


def test_the_optimizers_state_is_kept_between_steps():
    layer = nn.Linear(5, 7, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(3, 5)).sum().backward()
    optimizer.step()
    assert sum(tensor.numel() for tensor in tensors_of(optimizer, layer)) == 3 * 35 + 1  # the 1 counts steps


@pytest.mark.slow(reason="makes four models and trains three of them")
def test_the_benchmark_runs_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    options = ["--model", "tiny", "--rounds", "1", "--precision", "no", "--only", "lora", "--pairs", "2", "--json"]
    monkeypatch.setattr(sys, "argv", ["train_step", *options])
    train_step.main()
    output = json.loads(capsys.readouterr().out)
    assert [result["variant"] for result in output["results"]] == ["LoRA", "LoRA, cached reference"]
    for result in output["results"]:
        assert result["ratio_range"][0] <= result["ratio"] <= result["ratio_range"][1]
        assert result["ours"]["flops_per_pair"] < result["twin"]["flops_per_pair"]
        cached = "cached" in result["variant"]
        assert (result["ours"]["seconds_per_pair"]["reference"] == 0) == cached
        assert (result["logit_difference"] is None) == cached
        assert cached or result["logit_difference"] < 5e-3


def test_relabeling_by_other_rules_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["rules", "--pairs", "12"])
    rules.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["majority", "all", "first"], ["majority", "all", "again"]]
    assert " 12 new labels in " in lines[0]  # two prompts with six pairs each
    assert " 2 new labels in " in lines[-2]  # best-worst labels one pair per prompt
    assert all(" 0 new labels in " in line for line in lines[1::2])


@pytest.mark.slow(reason="runs a benchmark")
def test_the_measurement_of_a_gpu_runs_with_a_tiny_model_on_a_cpu(tmp_path: Path):
    assert gpu.main(["--model", "tiny", "--no-checks", "--precision", "no", "--output", str(tmp_path)]) == 0
    [path] = tmp_path.iterdir()
    lines = [line.split(" | ") for line in path.read_text().splitlines() if line.endswith("% |")]
    assert [(cells[0].strip("| "), cells[1]) for cells in lines] == [
        ("PickScore, small", "scoring, float32"),
        ("PickScore, small", "scoring, bfloat16"),
        ("tiny", "training, LoRA"),
        ("tiny", "training, every weight"),
        ("tiny", "generating"),
    ]
    assert all(float(cells[2].split()[0]) > 0 for cells in lines)


def test_a_measurement_that_needs_more_memory_than_there_is_becomes_a_row():
    def measure() -> gpu.Measured:
        raise torch.OutOfMemoryError("CUDA out of memory")

    row = gpu.Row("sdxl", "generating", gpu._attempt(measure))
    assert row.line() == "| sdxl | generating | out of memory |  |  |  |"
    fast = gpu.Row("sd15", "generating", gpu.Measured(8.25, "images", 3 * 2**29, 0.313))
    assert fast.line() == "| sd15 | generating | 8.25 images/s | 4 | 1.5 | 31% |"
