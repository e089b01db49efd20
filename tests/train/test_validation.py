"""Validation on held-out pairs: what a pass measures, at which timesteps, and when it stops a run."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prefloop.core.json import plain
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.monitor.monitor import METRICS
from prefloop.train.monitor.tables import read_rows
from prefloop.train.monitor.validation import COLUMNS, REFERENCE_FILE, Validation
from prefloop.train.pair_denoiser import Errors
from prefloop.train.pairs import Pairs
from prefloop.train.run_folder.tables import append_rows
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer

Make = Callable[..., Trainer]


def constant(chosen: float, rejected: float) -> Callable:
    """The same errors for every pair."""

    def errors_of(batches: list) -> Errors:
        size = sum(len(batch.pairs) for batch in batches)
        return Errors(torch.full((size,), chosen), torch.full((size,), rejected))

    return errors_of


def test_every_held_out_pair_is_measured_once_in_every_bin_at_fixed_timesteps(trainer: Make):
    validation = trainer().monitor.validation
    n = len(validation.pairs)
    assert n >= 1
    assert [(inside[0], inside[-1]) for inside in validation.bins] == [
        (0, 199),
        (200, 399),
        (400, 599),
        (600, 799),
        (800, 999),
    ]
    assert [draw.pair for draw in validation.draws] == validation.pairs * 5
    for at, draw in enumerate(validation.draws):
        first, last = validation.bins[at // n]
        assert draw.timestep is not None
        assert first <= draw.timestep <= last
    for at, draw in enumerate(validation.draws):
        (batch,) = validation.data.sample_batch([draw])
        assert batch.timesteps.tolist() == [draw.timestep], at
    again = trainer().monitor.validation
    assert [(draw.seed, draw.timestep) for draw in again.draws] == [(d.seed, d.timestep) for d in validation.draws]


def test_a_pass_counts_ties_as_one_half_and_compares_with_the_reference(
    trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    validation = trainer(beta=2.0).monitor.validation
    n = len(validation.draws)

    validation.compute_reference(constant(0.5, 0.5), tmp_path)
    (at_first, *_) = validation.run(constant(0.5, 0.5), step=0)
    assert (at_first["bin"], at_first["implicit_accuracy"], at_first["margin"]) == ("all", 0.5, 0.0)
    assert at_first["dpo_weight"] == 0.5
    row, *of_bins = validation.run(constant(0.25, 0.75), step=3)
    # u = -(2 / 2) * ((0.25 - 0.75) - 0) = 0.5; 1 - sigmoid(0.5) = 0.3775
    assert row["margin"] == pytest.approx(0.5)
    assert row["dpo_weight"] == pytest.approx(0.3775, abs=1e-4)
    # all pairs of its one prompt are right; one prompt has no interval
    assert (row["n_prompts"], row["implicit_accuracy"]) == (1, 1.0)
    assert (row["implicit_accuracy_low"], row["implicit_accuracy_high"]) == (None, None)
    assert (row["chosen_error"], row["ref_chosen_error"], row["rejected_error"]) == (0.25, 0.5, 0.75)
    assert [of_bin["bin"] for of_bin in of_bins] == [0, 1, 2, 3, 4]
    assert {of_bin["n_pairs"] for of_bin in of_bins} == {n // 5}
    kept = trainer(beta=2.0).monitor.validation
    assert kept.load_reference(tmp_path)
    assert kept.run(constant(0.25, 0.75), step=3)[0] == row
    (tmp_path / REFERENCE_FILE).write_bytes((tmp_path / REFERENCE_FILE).read_bytes()[:-1] + b"!")
    assert not trainer(beta=2.0).monitor.validation.load_reference(tmp_path)
    assert "damaged" in capsys.readouterr().err
    validation.compute_reference(constant(0.5, 0.5), tmp_path)
    assert not trainer(beta=2.0, seed=1).monitor.validation.load_reference(tmp_path)  # with other noise


def test_every_held_out_prompt_weighs_the_same(trainer: Make, tmp_path: Path):
    made = trainer(beta=2.0)
    pairs = list(made.data.pairs.train)
    made.data.encode(0, len(pairs))
    # the first prompt has ten pairs, nine others one each
    pairs = [replace(pair, prompt_id=pairs[0].prompt_id) for pair in pairs[:10]] + pairs[10:19]
    validation = made.monitor.validation
    validation.pairs = pairs
    validation.bins = validation.bins[:1]
    validation.draws = [replace(validation.draws[0], pair=pair) for pair in pairs]
    validation.compute_reference(constant(0.5, 0.5), tmp_path)

    def errors_of(batches: list) -> Errors:
        """The pairs of the first prompt are right, and the others wrong."""
        chosen = [0.25 if p.prompt_id == pairs[0].prompt_id else 0.75 for batch in batches for p in batch.pairs]
        return Errors(torch.tensor(chosen), torch.full((len(chosen),), 0.5))

    row = validation.run(errors_of, step=1)[0]
    assert (row["n_pairs"], row["n_prompts"]) == (19, 10)
    # one prompt in ten is right; over pairs it would be 10 of 19
    assert row["implicit_accuracy"] == pytest.approx(0.1)
    assert row["chosen_error"] == pytest.approx((0.25 + 9 * 0.75) / 10)
    assert (row["implicit_accuracy_low"], row["implicit_accuracy_high"]) == (pytest.approx(0.0), pytest.approx(0.3))
    # u = -(0.25 - 0.5) = 0.25 and -0.25
    assert row["margin"] == pytest.approx((0.25 - 9 * 0.25) / 10)


def test_the_last_rows_of_a_run_are_read_back_though_cells_are_empty(trainer: Make):
    """SFT logs no implicit accuracy, and one held-out prompt has no interval."""
    begun = trainer(loss="sft")
    begun.monitor.begin(0)
    begun.monitor.log(10, [begun.step()])
    resumed = trainer(loss="sft")
    resumed.monitor.begin(10)
    assert resumed.monitor.last_metrics["loss"] == pytest.approx(begun.monitor.last_metrics["loss"])
    assert math.isnan(resumed.monitor.last_metrics["implicit_accuracy"])
    assert plain(resumed.monitor.last_validation) == plain(begun.monitor.last_validation)
    assert resumed.monitor.last_validation["n_prompts"] == 1


def test_a_run_stops_early_when_held_out_accuracy_no_longer_rises_on_enough_evidence(trainer: Make):
    made = trainer(early_stopping=2, train_batch_size=29)
    few = made.data.pairs
    made.data.encode(0, len(few.train))
    made.monitor.validation = Validation(
        replace(made.data, pairs=Pairs(few.validation, few.train, few.texts)), made.config
    )
    made.monitor.begin(0)
    trained = {"loss": 0.7, "implicit_accuracy": 0.6, "learning_rate": 1e-3}
    append_rows(made.output / "metrics.csv", METRICS, [trained | {"step": step} for step in range(10, 81, 10)])
    best = {"bin": "all", "step": 40, "n_pairs": 29, "n_prompts": 29, "chosen_error": 1, "ref_chosen_error": 1}
    append_rows(
        made.output / "validation.csv",
        COLUMNS,
        [best | {"implicit_accuracy": 0.7, "implicit_accuracy_low": 0.6, "implicit_accuracy_high": 0.8}],
    )
    # the model is its reference: its accuracy is one half
    assert [made.monitor.validate(step) for step in (60, 80)] == [False, True]
    made.monitor.validation = Validation(made.data, made.config)  # one held-out pair
    made.monitor.validation.compute_reference(made.denoiser.reference_errors, made.output)
    assert not made.monitor.validate(100)


@pytest.mark.slow(reason="trains a model")
def test_a_run_that_is_stopped_early_ends_at_that_pass(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr("prefloop.train.monitor.monitor.should_stop", lambda *given: asked.append(given[2]) or True)
    config = replace(config, validation_steps=2, max_train_steps=3)
    assert train(replace(config, early_stopping=7), labelled)["steps"] == 2
    assert asked == [7]
    assert train(replace(config, output_dir=config.output_dir + "-patient"), labelled)["steps"] == 3
    assert asked == [7]


@pytest.mark.slow(reason="trains a model")
def test_a_run_that_was_stopped_early_and_killed_before_its_result_is_only_finished(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prefloop.train.monitor.monitor.should_stop", lambda _, rows, __: rows[-1]["step"] == "2")
    config = replace(config, validation_steps=2, max_train_steps=6, early_stopping=1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("prefloop.train.trainer.write_result", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, labelled)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", lambda *_: pytest.fail("a step was trained"))
        assert train(config, labelled)["steps"] == 2
    assert [row["step"] for row in read_rows(Path(config.output_dir) / "validation.csv")[::6]] == ["0", "2"]
    assert train(config, labelled, resume=True)["steps"] == 6  # it was asked to go on


def test_a_resumed_run_reads_the_last_pass_as_it_was(trainer: Make):
    monitor = trainer().monitor
    monitor.begin(0)
    before = json.dumps(plain(monitor.last_validation))
    assert '"timestep_low": 0, "timestep_high": 999' in before
    monitor._load_last_rows()
    assert json.dumps(plain(monitor.last_validation)) == before
