"""Looks at held-out pairs: what they show, where they look, and when a run ends by them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.errors import Errors
from prefloop.train.loop import _Trainer, train
from prefloop.train.tables import looks, read_rows
from prefloop.train.validation import REFERENCE_FILE, interval

Make = Callable[..., _Trainer]


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
    assert interval(np.full(10, 0.5), list(range(10)), seed=0) == (0.5, 0.5)


def test_every_held_out_pair_is_looked_at_once_in_every_bin_at_fixed_timesteps(trainer: Make):
    validation = trainer().looks.validation
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
        (batch,) = validation.data.drawn([draw])
        assert batch.timesteps.tolist() == [draw.timestep], at
    again = trainer().looks.validation
    assert [(draw.seed, draw.timestep) for draw in again.draws] == [(d.seed, d.timestep) for d in validation.draws]


def test_a_look_counts_ties_as_one_half_and_compares_with_the_reference(
    trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    validation = trainer(beta_dpo=2.0).looks.validation
    n = len(validation.draws)

    def constant(chosen: float, rejected: float) -> Callable:
        def errors_of(batches: list) -> Errors:
            size = sum(len(batch.pairs) for batch in batches)
            return Errors(torch.full((size,), chosen), torch.full((size,), rejected))

        return errors_of

    validation.ask_reference(constant(0.5, 0.5), tmp_path)
    (at_first, *_) = validation.look(constant(0.5, 0.5), step=0)
    assert (at_first["bin"], at_first["implicit_accuracy"], at_first["margin"]) == ("all", 0.5, 0.0)
    assert at_first["gradient_left"] == 0.5
    row, *of_bins = validation.look(constant(0.25, 0.75), step=3)
    # u = -(2 / 2) * ((0.25 - 0.75) - 0) = 0.5; 1 - sigmoid(0.5) = 0.3775
    assert row["margin"] == pytest.approx(0.5)
    assert row["gradient_left"] == pytest.approx(0.3775, abs=1e-4)
    assert (row["implicit_accuracy"], row["low"], row["high"]) == (1.0, 1.0, 1.0)
    assert (row["chosen_error"], row["ref_chosen_error"], row["rejected_error"]) == (0.25, 0.5, 0.75)
    assert [found["bin"] for found in of_bins] == [0, 1, 2, 3, 4]
    assert {found["n_pairs"] for found in of_bins} == {n // 5}
    kept = trainer(beta_dpo=2.0).looks.validation
    assert kept.recall_reference(tmp_path)
    assert kept.look(constant(0.25, 0.75), step=3)[0] == row
    (tmp_path / REFERENCE_FILE).write_bytes((tmp_path / REFERENCE_FILE).read_bytes()[:-1] + b"!")
    assert not trainer(beta_dpo=2.0).looks.validation.recall_reference(tmp_path)
    assert "damaged" in capsys.readouterr().err
    validation.ask_reference(constant(0.5, 0.5), tmp_path)
    assert not trainer(beta_dpo=2.0, seed=1).looks.validation.recall_reference(tmp_path)  # of other noise


def test_a_run_ends_early_when_held_out_accuracy_no_longer_rises(labelled: PairStore, config: TrainConfig):
    # with so small a rate nothing moves: no look is better than the one before the first step
    still = replace(config, learning_rate=1e-12, validation_steps=2, early_stopping=2, max_train_steps=20)
    summary = train(still, labelled)
    assert summary["steps"] == 4
    steps = [int(row["step"]) for row in looks(read_rows(Path(config.output_dir) / "validation.csv"))]
    assert steps == [0, 2, 4]
    patient = replace(still, early_stopping=0, output_dir=config.output_dir + "-patient")
    assert train(patient, labelled)["steps"] == 20
