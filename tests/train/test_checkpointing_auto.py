"""--gradient-checkpointing auto is on only where the estimate does not fit without it, and a run keeps what was chosen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cost_configs import DATA, SETTINGS, SPEED, TINY
from prefloop.core.commands import with_values
from prefloop.models.cost.components import with_text_defaults
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.store import PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.cost import checkpointing
from prefloop.train.cost.cards import auto_text, checkpointing_by_card, options_by_card
from prefloop.train.cost.checkpointing import choose_checkpointing, needs_checkpointing
from prefloop.train.cost.cost_model import CostModel
from prefloop.train.cost.dry_run import cost_settings, cost_settings_on, dry_run
from prefloop.train.recipes import read_settings, recipes
from prefloop.train.run_folder.choices import read_choices, write_choices
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from typer.testing import CliRunner

LARGE = replace(SETTINGS, resolution=512, train_batch_size=4)


def training_peak(costs: CostModel, **changes: Any) -> int:
    memory = costs.memory(replace(LARGE, **changes))
    return max(sum(memory[phase].values()) for phase in ("forward and backward", "optimizer step"))


def test_it_is_on_only_if_training_without_it_takes_more_than_95_percent():
    costs = CostModel(TINY, DATA, SPEED)
    peak = training_peak(costs)
    assert not needs_checkpointing(costs, LARGE, int(peak / 0.95) + 1)
    assert needs_checkpointing(costs, LARGE, int(peak / 0.95) - 1)
    # what is on already is estimated without it too
    assert not needs_checkpointing(costs, replace(LARGE, gradient_checkpointing=True), int(peak / 0.95) + 1)


def test_an_encoder_that_does_not_fit_is_no_reason_for_it():
    costs = CostModel(TINY, DATA, SPEED)
    settings = replace(LARGE, encode_batch=64)
    caching = sum(costs.memory(settings)["caching"].values())
    assert caching > training_peak(costs) / 0.95
    assert not needs_checkpointing(costs, settings, caching)


def test_a_cpu_has_it_off():
    assert not choose_checkpointing(TINY, LARGE, torch.device("cpu"))


def test_a_gpu_that_is_too_small_without_it_has_it_on(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    family, device = family_of(find_model(config.model)), torch.device("cuda:0")
    auto = replace(config, gradient_checkpointing="auto", resolution=512)
    costs = CostModel(with_text_defaults(family), DATA, SPEED)
    memory = costs.memory(cost_settings(auto, family))
    peak = max(sum(memory[phase].values()) for phase in ("forward and backward", "optimizer step"))
    for n_bytes, on in ((int(peak / 0.95) + 1, False), (int(peak / 0.95) - 1, True)):
        monkeypatch.setattr(checkpointing, "device_bytes", lambda _, n_bytes=n_bytes: n_bytes)
        assert cost_settings_on(device, auto, family).gradient_checkpointing is on
        assert not cost_settings_on(device, replace(auto, gradient_checkpointing=False), family).gradient_checkpointing


def test_cards_fit_with_what_auto_turns_on():
    costs = CostModel(TINY, DATA, SPEED)
    auto = replace(LARGE, auto_checkpointing=True)
    without, with_it = (training_peak(costs, gradient_checkpointing=on) / 0.95 / 2**30 for on in (False, True))
    assert with_it < without
    cards = (with_it * 0.99, with_it * 1.01, without * 1.01)
    assert list(options_by_card(costs, auto, cards[1:]).values()) == ["", ""]
    assert options_by_card(costs, auto, cards[:1])[cards[0]] == "--train-batch-size 1 --gradient-accumulation-steps 16"
    assert list(checkpointing_by_card(costs, auto, cards).values()) == [True, True, False]
    assert checkpointing_by_card(costs, LARGE, cards) == {}


def test_what_auto_chooses_is_told_by_card():
    assert auto_text({}, False) == ""
    text = auto_text({16: True, 24: True, 48: False, 80: False}, False)
    assert text == "; gradient checkpointing is auto: off here, on with 16, 24 GB, off with 48, 80 GB"
    assert auto_text({16: False}, True) == "; gradient checkpointing is auto: on here, off with 16 GB"


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_dry_run_says_what_auto_chooses(labelled: PairStore, config: TrainConfig):
    text, values = dry_run(replace(config, gradient_checkpointing="auto"), labelled)
    assert 'gradient-checkpointing = "auto"\n' in text
    (line,) = [line for line in text.splitlines() if line.startswith("cards ")]
    assert line.endswith(
        "16, 24, 48, 80 GB as set; gradient checkpointing is auto: off here, off with 16, 24, 48, 80 GB"
    )
    assert values["estimate"]["gradient_checkpointing"] is False
    assert "gradient checkpointing is" not in dry_run(config, labelled)[0]


def test_recipes_that_checkpointed_leave_it_to_the_card():
    chosen = {name: read_settings(name).get("gradient_checkpointing", False) for name in recipes()}
    assert {name for name, value in chosen.items() if value == "auto"} == recipes().keys() - {"sd15-lora"}
    assert chosen["sd15-lora"] is False


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("kept", [None, True])
def test_a_run_records_what_was_chosen_and_keeps_it_when_it_is_resumed(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, kept: bool | None
):
    config, output, seen = replace(config, gradient_checkpointing="auto"), Path(config.output_dir), []
    whole = Trainer.step

    def step(self: Trainer, micro_batches: Any = None) -> Any:
        seen.append(self.policy.component.is_gradient_checkpointing)
        return whole(self, micro_batches)

    monkeypatch.setattr(Trainer, "step", step)
    train(replace(config, max_train_steps=1), labelled)
    assert read_choices(output) == {"gradient_checkpointing": False}
    if kept is not None:  # as on a GPU that was too small without it
        write_choices(output, {"gradient_checkpointing": kept})
    train(config, labelled, resume=True)
    assert seen == [False, bool(kept), bool(kept)]
    record = json.loads((output / "prefloop.json").read_text())
    assert record["config"]["gradient_checkpointing"] is bool(kept)
    train(config, labelled, overwrite=True)
    assert seen[-1] is False  # a new run chooses again


@pytest.mark.slow(reason="trains a model")
def test_a_run_goes_on_with_checkpointing_or_without(labelled: PairStore, config: TrainConfig):
    # the identity of runs before auto, which had it in their hash
    on, off, auto = (replace(config, gradient_checkpointing=value) for value in (True, False, "auto"))
    before = on._hash(gradient_checkpointing=True)
    assert before != on.identity() == off.identity() == auto.identity()
    for settings in (on, off, auto):
        assert settings.continues(before)
        assert settings.continues(off.identity())
        assert not settings.continues(replace(settings, seed=7).identity())
    train(replace(on, max_train_steps=1), labelled)
    assert train(replace(auto, max_train_steps=2), labelled, resume=True)["steps"] == 2


@pytest.mark.slow(reason="trains a model")
def test_checkpointing_does_not_change_a_bit_of_training(labelled: PairStore, config: TrainConfig, tmp_path: Path):
    metrics = []
    for on in (False, True):
        output = tmp_path / str(on)
        train(replace(config, gradient_checkpointing=on, output_dir=str(output)), labelled)
        metrics.append((output / "metrics.csv").read_text())
    assert metrics[0] == metrics[1]


def test_the_option_is_a_switch_that_also_takes_a_word():
    switches = {"--x": ("true", "false", "auto")}
    for args, expected in (
        (["--x"], ["--x=true"]),
        (["--no-x"], ["--x=false"]),
        (["--x", "auto"], ["--x", "auto"]),
        (["--x", "--y", "1"], ["--x=true", "--y", "1"]),
        (["--x=auto", "y"], ["--x=auto", "y"]),
        (["--x", "y", "--", "--x"], ["--x=true", "y", "--", "--x"]),
    ):
        assert with_values(args, switches) == expected


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--gradient-checkpointing"], True),
        (["--gradient-checkpointing", "auto"], "auto"),
        (["--gradient-checkpointing", "true"], True),
        (["--no-gradient-checkpointing"], False),
        (["--config", "sd35-medium-lora"], "auto"),
        (["--config", "sd35-medium-lora", "--no-gradient-checkpointing"], False),
    ],
)
def test_the_command_line_gives_true_false_or_auto(words: list[str], value: Any, monkeypatch: pytest.MonkeyPatch):
    from prefloop.cli import app
    from prefloop.train.cost import dry_run as module

    seen = []
    monkeypatch.setattr(module, "dry_run", lambda config, *_, **__: seen.append(config) or ("", {}))
    more = ["--pairs", "9", "--dry-run", "--cpu", "--resolution", "32", "--model", "shapes"]
    result = CliRunner().invoke(app, ["train", *words, *more])
    assert result.exit_code == 0, result.output
    assert seen[0].gradient_checkpointing == value


def test_another_word_is_refused(config: TrainConfig, tmp_path: Path):
    with pytest.raises(UsageError, match="unknown gradient-checkpointing 'maybe'; choose from true, false, auto"):
        replace(config, gradient_checkpointing="maybe")  # type: ignore[arg-type]
    (tmp_path / "mine.toml").write_text('gradient_checkpointing = "maybe"')
    with pytest.raises(UsageError, match="to 'maybe', which is not true or false or auto"):
        read_settings(str(tmp_path / "mine.toml"))
