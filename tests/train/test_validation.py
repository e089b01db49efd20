"""Monitor at held-out pairs: what they show, where they look, and when a run ends by them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.monitor.monitor import METRICS
from prefloop.train.monitor.validation import COLUMNS, REFERENCE_FILE, Validation, interval
from prefloop.train.pair_denoiser import Errors
from prefloop.train.pairs import Pairs
from prefloop.train.run_folder.tables import append_rows
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer

Make = Callable[..., Trainer]


def test_the_interval_of_clusters_is_that_of_their_means():
    rng = np.random.default_rng(0)
    of_prompt = rng.random(200)
    alone = interval(of_prompt, list(range(200)), seed=0)
    # the normal interval of a mean: 1.96 standard errors to each side
    half = 1.96 * of_prompt.std() / np.sqrt(200)
    assert alone == pytest.approx((of_prompt.mean() - half, of_prompt.mean() + half), abs=0.1 * half)
    # five equal values of a prompt say no more than one: counted each for itself they would be 5 ** 0.5 narrower
    repeated = interval(np.repeat(of_prompt, 5), [prompt for prompt in range(200) for _ in range(5)], seed=0)
    assert repeated[1] - repeated[0] == pytest.approx(alone[1] - alone[0], rel=0.1)


@pytest.mark.parametrize(
    ("values", "groups", "low", "high"),
    [
        # Wilson's interval of 10 of 10 begins at 10 / (10 + 1.96^2) = 0.722; of 5 of 10 it is 0.237 to 0.763
        (np.ones(20), [k // 2 for k in range(20)], 0.722, 1.0),
        (np.full(10, 0.5), list(range(10)), 0.237, 0.763),
        # 2 of 3 prompts: the bootstrap knows but four means; Wilson's interval is 0.208 to 0.939
        (np.array([1.0, 1.0, 0.0]), [0, 1, 2], 0.208, 0.939),
        (np.ones(1), [0], 1 / (1 + 1.96**2), 1.0),
        (np.zeros(1), [0], 0.0, 1.96**2 / (1 + 1.96**2)),
    ],
)
def test_an_interval_has_a_width_where_all_pairs_agree_and_where_prompts_are_few(
    values: np.ndarray, groups: list, low: float, high: float
):
    assert interval(values, groups, seed=0) == pytest.approx((low, high), abs=0.001)


def test_ten_prompts_that_differ_are_drawn_again():
    values = np.array([1.0] * 5 + [0.0] * 5)
    low, high = interval(values, list(range(10)), seed=0)
    assert (low, high) == (pytest.approx(0.2, abs=0.1), pytest.approx(0.8, abs=0.1))
    assert (10 * low, 10 * high) == (pytest.approx(round(10 * low)), pytest.approx(round(10 * high)))  # means of ten


def test_every_held_out_pair_is_looked_at_once_in_every_bin_at_fixed_timesteps(trainer: Make):
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
        assert draw.timestep in validation.bins[at // n]
    for at, draw in enumerate(validation.draws):
        (batch,) = validation.data.sample_batch([draw])
        assert batch.timesteps.tolist() == [draw.timestep], at
    again = trainer().monitor.validation
    assert [(draw.seed, draw.timestep) for draw in again.draws] == [(d.seed, d.timestep) for d in validation.draws]


def test_a_look_counts_ties_as_one_half_and_compares_with_the_reference(
    trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    validation = trainer(beta=2.0).monitor.validation
    n = len(validation.draws)

    def constant(chosen: float, rejected: float) -> Callable:
        def errors_of(batches: list) -> Errors:
            size = sum(len(batch.pairs) for batch in batches)
            return Errors(torch.full((size,), chosen), torch.full((size,), rejected))

        return errors_of

    validation.ask_reference(constant(0.5, 0.5), tmp_path)
    (at_first, *_) = validation.look(constant(0.5, 0.5), step=0)
    assert (at_first["bin"], at_first["implicit_accuracy"], at_first["margin"]) == ("all", 0.5, 0.0)
    assert at_first["dpo_weight"] == 0.5
    row, *of_bins = validation.look(constant(0.25, 0.75), step=3)
    # u = -(2 / 2) * ((0.25 - 0.75) - 0) = 0.5; 1 - sigmoid(0.5) = 0.3775
    assert row["margin"] == pytest.approx(0.5)
    assert row["dpo_weight"] == pytest.approx(0.3775, abs=1e-4)
    # all pairs of its one prompt are right: Wilson's interval of 1 of 1
    assert (row["implicit_accuracy"], row["low"], row["high"]) == (1.0, pytest.approx(0.2065, abs=1e-3), 1.0)
    assert (row["chosen_error"], row["ref_chosen_error"], row["rejected_error"]) == (0.25, 0.5, 0.75)
    assert [found["bin"] for found in of_bins] == [0, 1, 2, 3, 4]
    assert {found["n_pairs"] for found in of_bins} == {n // 5}
    kept = trainer(beta=2.0).monitor.validation
    assert kept.recall_reference(tmp_path)
    assert kept.look(constant(0.25, 0.75), step=3)[0] == row
    (tmp_path / REFERENCE_FILE).write_bytes((tmp_path / REFERENCE_FILE).read_bytes()[:-1] + b"!")
    assert not trainer(beta=2.0).monitor.validation.recall_reference(tmp_path)
    assert "damaged" in capsys.readouterr().err
    validation.ask_reference(constant(0.5, 0.5), tmp_path)
    assert not trainer(beta=2.0, seed=1).monitor.validation.recall_reference(tmp_path)  # of other noise


def test_a_run_ends_early_when_held_out_accuracy_no_longer_rises_and_that_can_be_told(trainer: Make):
    made = trainer(early_stopping=2, train_batch_size=29)
    few = made.data.pairs
    made.monitor.validation = Validation(replace(made.data, pairs=Pairs(few.validation, few.train)), made.config)
    made.monitor.begin(0)
    trained = {"loss": 0.7, "implicit_accuracy": 0.6, "learning_rate": 1e-3}
    append_rows(made.output / "metrics.csv", METRICS, [trained | {"step": step} for step in range(10, 81, 10)])
    best = {"bin": "all", "step": 40, "n_pairs": 29, "chosen_error": 1, "ref_chosen_error": 1}
    append_rows(made.output / "validation.csv", COLUMNS, [best | {"implicit_accuracy": 0.7, "low": 0.6, "high": 0.8}])
    # the model is its reference: its accuracy is one half
    assert [made.monitor.validate(step) for step in (60, 80)] == [False, True]
    made.monitor.validation = Validation(made.data, made.config)  # one held-out pair
    made.monitor.validation.ask_reference(made.denoiser.reference_errors, made.output)
    assert not made.monitor.validate(100)


def test_a_run_that_is_stopped_early_ends_at_that_look(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr("prefloop.train.monitor.monitor.should_stop", lambda *given: asked.append(given[2]) or True)
    config = replace(config, validation_steps=2, max_train_steps=3)
    assert train(replace(config, early_stopping=7), labelled)["steps"] == 2
    assert asked == [7]
    assert train(replace(config, output_dir=config.output_dir + "-patient"), labelled)["steps"] == 3
    assert asked == [7]
