"""What a GPU would wait for, seen on tensors that only pretend to be on one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from prefloop.core.signals import StopSignal
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.objective import batch_metrics, pair_losses
from prefloop.train.optimizers import optimizer_for
from prefloop.train.pair_denoiser import Errors
from prefloop.train.state import load_parts
from prefloop.train.trainer import Trainer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda:0")


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to a GPU: those that it waits for, and all."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.n = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and kwargs.get("device") == GPU:
            self.n += 1
            self.waiting += not kwargs.get("non_blocking", False)
        return func(*args, **kwargs)


@contextmanager
def pretended() -> Iterator[Copies]:
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        yield copies


def test_no_copy_to_a_gpu_is_waited_for(labelled: PairStore, config: TrainConfig):
    trainer = Trainer(replace(config, soft_labels=True, input_perturbation=0.1), labelled, StopSignal())
    (batch,) = trainer.data.batch(0, 2)
    with pretended() as copies:
        moved = batch.to(GPU)
        tensors = [moved.chosen, moved.rejected, moved.noise, moved.timesteps, *moved.conditions.values()]
        assert {tensor.device for tensor in tensors} == {GPU}
        # two latents, noise, its perturbation, timesteps and the prompts
        assert (copies.n, copies.waiting) == (5 + len(batch.conditions), 0)
        four = [torch.rand(2, device=GPU) for _ in range(4)]
        errors = Errors(four[0], four[1], ref_chosen=four[2], ref_rejected=four[3])
        loss = pair_losses(errors, batch.pairs, trainer.config)
        batch_metrics(errors, loss, trainer.config)
        assert (copies.n, copies.waiting) == (7 + len(batch.conditions), 0)  # the labeler's weights, and p_chosen


def test_copies_on_a_cpu_are_the_tensors_themselves(labelled: PairStore, config: TrainConfig):
    (batch,) = Trainer(config, labelled, StopSignal()).data.batch(0, 2)
    moved = batch.to(torch.device("cpu"))
    assert moved.chosen is batch.chosen
    assert all(moved.conditions[name] is value for name, value in batch.conditions.items())


def test_a_resumed_optimizer_keeps_its_counters_on_the_cpu_and_its_moments_on_the_gpu(tmp_path: Path):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, ema = torch.optim.AdamW([weight]), EMAModel([weight], decay=0.9)
    weight.sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "ema": ema.state_dict()}, tmp_path / "optimizer.pt")
    with pretended():
        there = torch.nn.Parameter(torch.ones(3, device=GPU))
        parts: dict[str, Any] = {"optimizer": torch.optim.AdamW([there]), "ema": EMAModel([there], decay=0.9)}
        load_parts(tmp_path / "optimizer.pt", parts, GPU)
        (state,) = parts["optimizer"].state.values()
        assert {name: tensor.device.type for name, tensor in state.items()} == {
            "step": "cpu",
            "exp_avg": "cuda",
            "exp_avg_sq": "cuda",
        }
        assert [tensor.device.type for tensor in parts["ema"].shadow_params] == ["cuda"]


@pytest.mark.parametrize(("precision", "fused"), [("no", True), ("bf16", True), ("fp16", False)])
def test_one_kernel_updates_all_weights_on_a_gpu_unless_gradients_are_scaled(
    config: TrainConfig, tiny_pipeline: Path, precision: str, fused: bool
):
    config, family = replace(config, mixed_precision=precision), family_of(find_model(str(tiny_pipeline)))
    with pretended():
        there = [torch.nn.Parameter(torch.ones(3, device=GPU))]
        assert bool(optimizer_for(config, family, there, 0.1).defaults["fused"]) == fused
    here = [torch.nn.Parameter(torch.ones(3))]
    assert not optimizer_for(config, family, here, 0.1).defaults["fused"]
