"""A LoRA beside a base in 8 or 4 bits: it learns, resumes to the bit, and its result is for the base as it is."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from cost_configs import DATA, SPEED
from prefloop.core.signals import StopSignal
from prefloop.models.cost.components import with_text_defaults
from prefloop.models.families import family_of
from prefloop.models.loading import load_component
from prefloop.models.quantized import KINDS, QuantizedLinear, quantizable
from prefloop.models.resolve import find_model
from prefloop.store import PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.cost.cost_model import CostModel
from prefloop.train.cost.dry_run import cost_settings
from prefloop.train.policy import Policy
from prefloop.train.resources import out_of_memory
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from safetensors.torch import load_file

pytest.importorskip("bitsandbytes")

MODELS = ["sd15", "sd35"]
"""A U-Net and a transformer."""
Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("quantized")
    return {kind: str(tiny.saved(kind, root / kind)) for kind in MODELS}


@pytest.fixture
def make(labelled: PairStore, config: TrainConfig, folders: dict[str, str]) -> Make:
    """Makes a trainer of a LoRA on one of the models."""

    def trainer(kind: str, **changes: Any) -> Trainer:
        settings = {"model": folders[kind], "lora_rank": 2, "learning_rate": 1e-2} | changes
        changed = replace(config, **settings)
        Path(changed.output_dir).mkdir(parents=True, exist_ok=True)
        return Trainer(changed, labelled, StopSignal())

    return trainer


def held(component: Any) -> dict[str, torch.Tensor]:
    """The quantized weights, dequantized."""
    return {
        name.removesuffix(".base_layer"): layer.weight
        for name, layer in component.named_modules()
        if isinstance(layer, QuantizedLinear)
    }


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("kind", MODELS)
def test_a_lora_learns_as_beside_an_unquantized_base_and_the_base_stays(make: Make, kind: str):
    falls = {}
    for quantize in ("no", *KINDS):
        trainer = make(kind, quantize=quantize, loss="sft", max_train_steps=15, learning_rate=0.05)
        before, batch = held(trainer.policy.component), trainer.data.batch(0, 8)
        first = trainer.denoiser.policy_errors(batch).chosen.mean()
        for _ in range(15):
            trainer.step(iter([batch]))
        falls[quantize] = float(first - trainer.denoiser.policy_errors(batch).chosen.mean())
        assert all(torch.equal(weight, before[name]) for name, weight in held(trainer.policy.component).items())
        # the reference is the same base without the LoRA
        torch.testing.assert_close(trainer.denoiser.reference_errors(batch).chosen.mean(), first)
    assert falls["no"] > 0.01
    for quantize in KINDS:
        assert falls[quantize] == pytest.approx(falls["no"], rel=0.2)


@pytest.mark.parametrize("quantize", KINDS)
def test_every_precision_computes_in_its_own_dtype(make: Make, quantize: str):
    errors, weights = [], []
    for precision in ("no", "bf16"):
        trainer = make("sd35", quantize=quantize, mixed_precision=precision)
        errors.append(trainer.denoiser.policy_errors(trainer.data.batch(0, 4)).chosen)
        assert torch.isfinite(trainer.step()[0])
        component = trainer.policy.component
        assert component.dtype == (torch.float32 if precision == "no" else torch.bfloat16)
        scales = [layer.scales.dtype for layer in component.modules() if isinstance(layer, QuantizedLinear)]
        assert set(scales) == {torch.float32}
        assert {weight.dtype for weight in trainer.policy.parameters()} == {torch.float32}
        weights.append(held(component))
    assert errors[1].dtype == torch.float32
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())  # of the float32 weights
    torch.testing.assert_close(errors[1], errors[0], rtol=0.03, atol=0.0)


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("kind", MODELS)
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(make: Make, kind: str, tmp_path: Path):
    settings: dict[str, Any] = {"quantize": "nf4", "max_train_steps": 4, "checkpointing_steps": 2}
    whole = make(kind, output_dir=str(tmp_path / "whole"), **settings)
    whole.train("run")
    first = make(kind, **settings)
    micro_batches = first.feed.micro_batches(first.global_step)
    for _ in range(2):
        first.recent.append(first.step(micro_batches))
        first.global_step += 1
    first.state.save(2)
    second = make(kind, **settings)
    second.train("run")
    for name, weight in whole.policy.trainable_state().items():
        assert torch.equal(weight, second.policy.trainable_state()[name]), name
    with pytest.raises(UsageError, match="other settings"):
        make(kind, **(settings | {"quantize": "int8", "max_train_steps": 5})).state.restore()


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("kind", MODELS)
def test_the_result_is_a_lora_for_the_base_as_it_is(make: Make, folders: dict[str, str], kind: str):
    trainer = make(kind, quantize="nf4", max_train_steps=2, lora_alpha=3.0)
    trainer.train("run")
    family = trainer.data.family
    pipeline: Any = getattr(diffusers, family.pipeline_class).from_pretrained(folders[kind])
    plain = {name: weight.clone() for name, weight in getattr(pipeline, family.component).named_parameters()}
    pipeline.load_lora_weights(trainer.config.output_dir)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    adapter = trainer.policy.adapter()
    fused = dict(getattr(pipeline, family.component).named_parameters())
    for name, weight in fused.items():
        a_b = adapter.layers.get(name.removesuffix(".weight"))
        expected = plain[name] if a_b is None else plain[name] + 1.5 * a_b[1] @ a_b[0]
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
    record = json.loads((Path(trainer.config.output_dir) / "prefloop.json").read_text())
    assert record["config"]["quantize"] == "nf4"
    assert "bitsandbytes" in record["versions"]
    card = (Path(trainer.config.output_dir) / "README.md").read_text()
    assert "- the base model's linear layers were in nf4 during training, and are not in what is loaded here" in card


@pytest.mark.slow(reason="trains a model")
def test_a_pipeline_with_the_lora_fused_has_the_base_as_it_is(
    config: TrainConfig, labelled: PairStore, folders: dict[str, str]
):
    """Also what is trained on it has the LoRA fused in float32 before anything is quantized."""
    settings = replace(config, model=folders["sd15"], lora_rank=2, quantize="nf4", max_train_steps=1, learning_rate=0.1)
    both = {}
    for form in ("lora", "pipeline"):
        both[form] = replace(settings, format=form, output_dir=f"{config.output_dir}-{form}")
        train(both[form], labelled)
    components = [load_component(find_model(made.output_dir)) for made in both.values()]
    states = [component.state_dict() for component in components]
    assert states[0].keys() == states[1].keys()
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=0.0, atol=1e-7)
    on_lora = replace(settings, model=both["lora"].output_dir, output_dir=f"{config.output_dir}-2")
    policy = Policy(load_component(find_model(on_lora.model)), on_lora, family_of(find_model(folders["sd15"])))
    quantized, fused = held(policy.component), quantizable(components[0].requires_grad_(False))
    assert quantized.keys() == fused.keys()
    for name, layer in fused.items():
        assert torch.equal(quantized[name], QuantizedLinear(layer, "nf4").weight)


def test_a_reference_that_is_named_is_quantized_too(make: Make, folders: dict[str, str]):
    own, named = make("sd15", quantize="nf4"), make("sd15", quantize="nf4", reference=folders["sd15"])
    (batch,) = own.data.batch(0, 4)
    errors = named.denoiser.errors([batch])
    assert errors.ref_chosen is not None
    assert torch.equal(errors.ref_chosen, errors.chosen)
    assert torch.equal(errors.chosen, own.denoiser.errors([batch]).chosen)


@pytest.mark.slow(reason="trains a model")
def test_errors_that_are_kept_of_the_reference_are_those_of_the_quantized_one(make: Make, tmp_path: Path):
    found = []
    for quantize in ("no", "nf4"):  # one store
        trainer = make(
            "sd15", quantize=quantize, reference_draws=1, max_train_steps=1, output_dir=str(tmp_path / quantize)
        )
        trainer.train("run")
        (batch,) = trainer.data.sample_batch([draw for _, draw in trainer.data.cached_draws(0, 1)])
        assert batch.ref_chosen is not None
        torch.testing.assert_close(batch.ref_chosen, trainer.denoiser.reference_errors([batch]).chosen)
        found.append(batch.ref_chosen)
    assert not torch.equal(*found)


@pytest.mark.slow(reason="trains a model")
def test_samples_validation_and_kohyas_file_are_written(
    config: TrainConfig, labelled: PairStore, folders: dict[str, str]
):
    first = replace(config, model=folders["sd15"], lora_rank=2, max_train_steps=1)
    train(first, labelled)
    second = replace(first, model=first.output_dir, output_dir=f"{first.output_dir}-2", quantize="nf4", kohya=True)
    summary = train(replace(second, sample_steps=1, validation_steps=1), labelled)
    assert summary["validation"]["implicit_accuracy"] is not None
    assert (Path(second.output_dir) / "samples" / "step-000001.png").exists()
    names = load_file(Path(second.output_dir) / "kohya.safetensors")
    assert {"lora_down", "lora_up"} == {name.split(".")[1] for name in names if not name.endswith("alpha")}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_estimate_counts_the_bytes_that_the_policy_holds(make: Make, kind: str, quantize: str, precision: str):
    trainer = make(kind, quantize=quantize, mixed_precision=precision)
    family = with_text_defaults(trainer.data.family)
    costs, settings = CostModel(family, DATA, SPEED), cost_settings(trainer.config, family)
    held_bytes = sum(weight.nbytes for weight in trainer.policy.component.parameters())
    assert costs.memory(settings)["forward and backward"]["weights"] == held_bytes
    assert held_bytes < costs.memory(replace(settings, quantize="no"))["forward and backward"]["weights"]


def test_a_lora_that_runs_out_of_memory_is_told_to_quantize_next(config: TrainConfig):
    small = replace(config, lora_rank=2, train_batch_size=1, gradient_checkpointing=True, mixed_precision="bf16")
    assert "try --quantize int8, or --optimizer adafactor, or" in out_of_memory(small)
    assert "try --quantize nf4, or --optimizer" in out_of_memory(replace(small, quantize="int8"))
    for without in (replace(small, quantize="nf4"), replace(small, lora_rank=0)):
        assert "--quantize" not in out_of_memory(without)


def test_full_fine_tuning_is_refused(config: TrainConfig):
    with pytest.raises(UsageError, match="quantize nf4 is for a LoRA's frozen weights; give a --lora-rank above 0"):
        replace(config, lora_rank=0, quantize="nf4")
    with pytest.raises(UsageError, match="unknown quantize 'int4'; choose from no, int8, nf4"):
        replace(config, quantize="int4")  # type: ignore[arg-type]


def test_a_run_that_began_before_the_option_existed_is_resumed():
    settings = TrainConfig(output_dir="o", labelers=("someone",), lora_rank=2)
    before = "0c5d067b16a96b4a95402f8f5213d657b8e4a9cb530d1fb836b2ef5c6fdfef80"  # of commit 1404790
    assert settings.identity() == before
    assert replace(settings, quantize="nf4").identity() != before
