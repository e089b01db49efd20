"""On a GPU a U-Net's convolutions have their channels last: other strides, the same values, names and files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.train import TrainConfig, policy
from prefloop.train.placement import follow_layout, prefers_channels_last
from prefloop.train.trainer import Trainer
from safetensors.torch import load_file
from torch import Tensor, nn

Make = Callable[..., Trainer]


def convolutions(component: Any) -> list[Tensor]:
    """Weights whose two orders differ."""
    return [
        module.weight
        for module in component.modules()
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] > 1 and module.weight[0, 0].numel() > 1
    ]


def are_last(weights: list[Tensor]) -> list[bool]:
    return [
        weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous() for weight in weights
    ]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes a CPU do as a GPU does."""
    return lambda: monkeypatch.setattr(policy, "prefers_channels_last", lambda *_: True)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_step_with_channels_last_is_the_same_within_rounding(trainer: Make, forced: Callable, lora_rank: int):
    losses, norms = [], []
    for last in (False, True):
        if last:
            forced()
        made = trainer(lora_rank=lora_rank)
        parts = [made.policy.component, *([] if lora_rank else [made.policy._reference])]
        for part in parts:
            assert len(convolutions(part)) > 5
            assert set(are_last(convolutions(part))) == {last}
        rows = torch.stack([made.step(), made.step()])
        losses.append(rows[:, 0])
        norms.append(rows[:, -1])
        if last and not lora_rank:  # gradients and moments lie as their weights do
            weight = convolutions(made.policy.component)[0]
            assert are_last([made.optimizer.state[weight]["exp_avg"]]) == [True]
    assert torch.allclose(losses[0], losses[1], rtol=1e-4)
    assert torch.allclose(norms[0], norms[1], rtol=1e-3)


def test_a_checkpoint_has_the_same_bytes_and_is_resumed_either_way(trainer: Make, forced: Callable, tmp_path: Path):
    plain = trainer(output_dir=str(tmp_path / "plain"))
    plain.step()
    plain.state.save(1)
    forced()
    last = trainer(output_dir=str(tmp_path / "last"))
    assert last.policy.component.device.type == "cpu"
    (tmp_path / "plain" / "checkpoint-1").rename(tmp_path / "last" / "checkpoint-1")
    assert last.state.restore() == 1
    weight = convolutions(last.policy.component)[0]
    assert are_last([weight, last.optimizer.state[weight]["exp_avg"]]) == [True, True]
    own, other = (made.policy.trainable_state() for made in (plain, last))
    assert all(torch.equal(own[name], other[name]) for name in own)
    last.state.save(2)
    files = [tmp_path / "last" / f"checkpoint-{step}" / "unet" for step in (1, 2)]
    name = "diffusion_pytorch_model.safetensors"
    assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()
    assert load_file(files[1] / name).keys() == own.keys()


def test_moments_get_the_order_of_their_weight_and_keep_their_values():
    weight = nn.Parameter(torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW([weight])
    moment = torch.arange(48.0).reshape(3, 4, 2, 2)
    step = torch.tensor(5.0)
    optimizer.state[weight] = {"exp_avg": moment, "step": step}
    follow_layout(optimizer)
    kept = optimizer.state[weight]
    assert kept["exp_avg"].stride() == weight.stride() != moment.stride()
    assert torch.equal(kept["exp_avg"], moment)
    assert kept["step"] is step


def test_only_a_u_net_on_a_gpu_has_its_channels_last(config: TrainConfig, tmp_path: Path):
    u_net = family_of(find_model(config.model))
    transformer = family_of(find_model(str(tiny.saved("sana", tmp_path / "sana"))))
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    assert [prefers_channels_last(u_net, device) for device in (gpu, cpu, torch.device("mps"))] == [True, False, False]
    assert not prefers_channels_last(transformer, gpu)
