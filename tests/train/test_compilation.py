"""--compile: the same losses within rounding, files without a trace of it, and errors in words."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.store import PairStore, PrefloopError, UsageError
from prefloop.train import TrainConfig, compilation
from prefloop.train.cost.dry_run import dry_run
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from safetensors import safe_open
from torch import nn

Make = Callable[..., Trainer]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compiles with a backend that takes no C++ compiler and no minute; the number of operations of each compiled graph."""
    from torch._dynamo.backends.debugging import aot_eager

    sizes: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "_BACKEND", backend)
    return sizes


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_compiled_step_is_the_same_within_rounding(trainer: Make, traced: list[int], lora_rank: int):
    rows = []
    for compiles in (False, True):
        made = trainer(lora_rank=lora_rank, compile=compiles)
        assert not traced
        rows.append(torch.stack([made.step(), made.step()]))
    # the policy with gradients, its reference without
    assert len(traced) >= 2
    assert min(traced) > 20
    assert torch.allclose(rows[0], rows[1], rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.slow(reason="a C++ compiler takes half a minute")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_what_inductor_compiles_trains_and_validates_the_same_within_rounding(trainer: Make):
    losses = []
    for compiles in (False, True):
        made = trainer(lora_rank=2, compile=compiles)
        made.monitor.begin(0)
        made.step()
        losses.append(made.step()[0])
        made.monitor.validate(2)
        losses.append(torch.tensor(made.monitor.last_validation["chosen_error"]))
    assert torch.allclose(torch.stack(losses[:2]), torch.stack(losses[2:]), rtol=1e-3)


def compiled(component: nn.Module) -> set[str]:
    return {type(module).__name__ for module in component.modules() if module._compiled_call_impl is not None}


def test_the_repeated_blocks_of_policy_and_reference_are_compiled_and_nothing_else(trainer: Make):
    made = trainer(compile=True)
    for part in (made.policy.component, made.policy._reference):
        assert compiled(part) == {"BasicTransformerBlock"}
    assert compiled(trainer().policy.component) == set()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_checkpoint_and_result_have_the_names_of_an_uncompiled_run(trainer: Make, tmp_path: Path, lora_rank: int):
    names = []
    for compiles in (False, True):
        made = trainer(output_dir=str(tmp_path / str(compiles)), compile=compiles, lora_rank=lora_rank)
        made.state.save(1)
        made.policy.save_pipeline(made.output, made.model)
        assert made.state.restore() == 1
        found = {}
        for path in sorted(made.output.rglob("*.safetensors")):
            with safe_open(path, "pt") as file:
                found[path.relative_to(made.output).as_posix()] = sorted(file.keys())
        names.append(found)
    assert len(names[0]) >= 3
    assert names[0] == names[1]
    assert "_orig_mod" not in str(names)


def test_a_model_without_repeated_blocks_is_refused(config: TrainConfig, tmp_path: Path):
    sana = family_of(find_model(str(tiny.saved("sana", tmp_path / "sana"))))
    with pytest.raises(UsageError, match=r"diffusers knows, and it knows none of SanaTransformer2DModel; leave"):
        compilation.refuse_uncompilable(sana)
    compilation.refuse_uncompilable(family_of(find_model(config.model)))


@pytest.mark.slow(reason="trains a model")
def test_a_machine_without_a_compiler_is_named_before_anything_is_loaded(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for run in (train, dry_run):
        with pytest.raises(PrefloopError, match=r"a C\+\+ compiler, and no-such-compiler was not found; install one"):
            run(replace(config, compile=True), labelled)
    assert dry_run(config, labelled)[0]


def test_a_run_without_it_has_the_identity_of_earlier_runs(config: TrainConfig):
    assert replace(config, compile=False).identity() == config.identity() != replace(config, compile=True).identity()
